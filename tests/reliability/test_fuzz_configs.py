"""Configurations: every field of every schema with values that it must not have, broken YAML, bombs, broken overrides."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.benchmark.config import BenchmarkConfig
from eval.config import EvalConfig
from pipeline.core.config import load_config, to_dict, to_yaml
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.training import dry_run as dry_run_tokenizer
from stage2_prior.config import Stage2Config
from stage2_prior.training import dry_run as dry_run_prior

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SCHEMAS: dict[type, Path] = {
    Stage1Config: CONFIGS / "stage1/demo.yaml",
    Stage2Config: CONFIGS / "stage2/maskgit_demo.yaml",
    EvalConfig: CONFIGS / "eval/demo.yaml",
    BenchmarkConfig: CONFIGS / "benchmark/smoke.yaml",
}
NASTY: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 7, -0.5, 0.3, 1.5, 1e300, float("inf"), float("-inf"), float("nan")),
    *(2**31, 2**63, 10**400, -(10**30), "", " ", "text", "1e3", "nan", "0x10", "null", "a" * 5000, "é\u2028\x1b[2J\n"),
    "\ud7ff",
    *("../../../etc/passwd", "/dev/null", "~nobody", [], [1], [1, 2, 3], [[]], [None], ["a"], {}, {"name": None}),
    {"name": "x"},
    *({"a": {"b": {"c": 1}}}, {"name": ["lgq"]}, {"": 1}, [{"name": "vq"}] * 50, "2020-01-01", "lgq", "fsq", "maskgit"),
    "shapes",
]
TEXTS: list[bytes] = [
    *(b"", b"#", b"\0", b"\xff\xfe", b"\x80abc", b"\t", b"a:\tb", b"\ta: 1", b"- 1\n- 2", b"text", b"1", b"a: 1\na: 2", b"{"),
    b"[",
    *(b"a: [1, 2", b"a: 'b", b"a: *b", b"&a [*a]", b"a: &b 1\nc: *b", b"? [1]\n: 2", b"1: 2", b"null: 1", b"a: !!set {b}"),
    b"%YAML 9.9",
    *(b"a: !!binary aGk=", b"a: 2020-13-45", b"a: 2020-01-01", b"a: !!python/object/apply:os.system [true]"),
    b"!!python/name:os",
    *(b"--- 1\n--- 2", b"a: !!int x", b"a: !!float x", b"a: !unknown 1", b"a: 1e999", b"a: " + b"9" * 6000, b"a: .nan"),
    b"<<: 3",
    *(b"include: 3", b"include: [3]", b"include: .", b"include: nothing.yaml", b"include: ''", b"include: /dev/null"),
    b"include: a\0b",
    *(b"[" * 20000, b"{a: " * 3000, b"- " * 5000, b"a: " * 3000, b"a: " + b"x" * 1_000_000, b"x: 1\n" * 3000, b"a: |\n  b\n c"),
    *(b"run: \xc3", b"run: \xf0\x9f", b"\xef\xbb\xbfseed: 1", b"seed: 1\r\n", b"seed: 1\x85", b"\x1b[31mseed: 1"),
    b"seed: 0b11",
]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def paths(values: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of nested mappings."""
    for key, value in values.items() if isinstance(values, dict) else ():
        yield (*prefix, key)
        yield from paths(value, (*prefix, key))


def changed(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy with another value in one place."""
    copied = copy.deepcopy(values)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copied


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_wrong_values(schema, fuzzer, tmp_path, scale):
    values = to_dict(load_config(schema, SCHEMAS[schema]))
    places, file = list(paths(values)), tmp_path / "config.yaml"
    for number in range(100 * scale):
        random = fuzzer.random(f"{schema.__name__} {number}")
        # every place has its turn, with a value of its own each time
        place, value = places[number % len(places)], random.choice(NASTY)
        file.write_text(yaml.safe_dump(changed(values, place, value), allow_unicode=True), encoding="utf-8")
        case = f"{schema.__name__} {'.'.join(place)}={value!r:.60}"
        config = fuzzer.attempt(case, load_config, schema, file)
        if config is not None:
            file.write_text(to_yaml(config), encoding="utf-8")
            fuzzer.require(case, load_config(schema, file) == config, "does not come back from its own text")


def test_broken_texts(fuzzer, tmp_path, scale):
    file, schemas = tmp_path / "config.yaml", list(SCHEMAS)
    for number in range(150 * scale):
        random = fuzzer.random(number)
        schema = random.choice(schemas)
        if number < len(TEXTS):
            text = TEXTS[number]
        else:
            text = bytearray(SCHEMAS[schema].read_bytes())
            for _ in range(random.choice([1, 1, 3, 20])):
                place = random.randrange(len(text) + 1)
                damage = random.choice(
                    [b"\t", b"\0", b":", b"- ", b"[", b"{", b"}", b"&a ", b"*a", b"!!", b"\xff", b"\n", b"'", b"#"]
                )
                text[place : place + random.randrange(4)] = damage
            if random.random() < 0.2:
                text = text[: random.randrange(len(text))]
        file.write_bytes(bytes(text))
        fuzzer.attempt(f"{number} {bytes(text[:60])!r}", load_config, schema, file)


def test_overrides(fuzzer, scale):
    keys = [".".join(path) for schema in SCHEMAS for path in paths(to_dict(load_config(schema, SCHEMAS[schema])))]
    texts = [
        "",
        "=",
        "a",
        "a=",
        ".=1",
        "a..b=1",
        "run",
        "=run",
        "run.x=1",
        "optim=3",
        "optim.lr.x=1",
        "loss=",
        "quantizer.name.x=1",
    ]
    values = [
        "",
        "[",
        "{",
        "*a",
        "&a",
        "!!set {a}",
        "- ",
        "'",
        "é",
        "1e999",
        "9" * 5000,
        ".nan",
        "~",
        "{a: {b: [1, {c: 2}]}}",
        "\0",
    ]
    for number in range(100 * scale):
        random = fuzzer.random(number)
        schema = random.choice(list(SCHEMAS))
        text = texts[number] if number < len(texts) else f"{random.choice(keys)}={random.choice([*values, *map(str, NASTY)])}"
        fuzzer.attempt(f"{schema.__name__} {text[:80]!r}", load_config, schema, SCHEMAS[schema], [text])


def test_bombs(fuzzer, tmp_path):
    file = tmp_path / "config.yaml"
    for schema in SCHEMAS:
        for place in ("data", "run", "name", "quantizer", "prior", "optim"):
            for text in (BOMB + f"{place}: *i", BOMB, f"{place}: " + "{a: " * 600 + "1" + "}" * 600):
                file.write_text(text)
                fuzzer.attempt(f"{schema.__name__} {place}", load_config, schema, file)
    for target in (tmp_path, tmp_path / "nothing", Path("/dev/null/x"), Path("a\0b"), Path("x" * 300), Path("\udcff.yaml")):
        fuzzer.attempt(str(target)[:40], load_config, Stage1Config, target)


def test_dry_runs_of_models_that_cannot_be(fuzzer, chain, settings, scale):
    stage1 = load_config(Stage1Config, None, [*settings.stage1, "run=runs/none"])
    stage2 = [*settings.stage2, "run=runs/none", f"tokens={chain.tokens}", "prior=ar"]
    both = [(Stage1Config, [*settings.stage1, "run=runs/none"], dry_run_tokenizer), (Stage2Config, stage2, dry_run_prior)]
    trees = [to_dict(stage1), to_dict(load_config(Stage2Config, None, stage2))]
    parts = [
        [path for path in paths(values) if path[0] in ("quantizer", "backbone", "prior", "image_size")] for values in trees
    ]
    for number in range(30 * scale):
        random = fuzzer.random(number)
        which = number % 2
        schema, overrides, dry_run = both[which]
        place, value = ".".join(parts[which][number // 2 % len(parts[which])]), random.choice(NASTY)
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
        fuzzer.attempt(
            f"{place}={text[:60]!r}",
            lambda s, o, run: run(load_config(s, None, o)),
            schema,
            [*overrides, f"{place}={text}"],
            dry_run,
        )
