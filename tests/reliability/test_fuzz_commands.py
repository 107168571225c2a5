"""Command lines: wrong numbers, missing files, folders for files and files for folders, places that cannot be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from eval.config import EvalConfig
from pipeline.api import TokenStore, load_config, load_pipeline
from pipeline.core.config import read_yaml
from pipeline.core.files import read_json
from pipeline.core.run_folder import RunFolder
from pipeline.core.snapshot import load_newest_snapshot
from pipeline.core.token_file import read_token_file
from pipeline.editing_command import read_picture

PROJECT = Path(__file__).resolve().parents[2]
SECONDS = 240  # a command trains nothing here; CI is slow
NUMBERS = [
    *("-1", "0", "1", "2", "3", "1e3", "x", "", "nan", "inf", "-inf", "9" * 30, "0.5", "1.5", "-0.0"),
    *("\u0661", "0x1", "1_0", " 1", "1e30", "1e-30", "9" * 5000),
]
SEEDS = ["", "-", "1-", "a", "3-1", "0-2", "1,1", "1,,2", "9" * 25, "0-99999999999", "²", "1\n2"]
CLASSES = ["star", "st", "strr", "", "-1", "10", "99", "9" * 5000, "*", "(", "é", "\udcff", "4"]


@pytest.fixture(scope="module")
def places(chain, tmp_path_factory):
    """Files and folders of every kind that a command may be given, none of which may change."""
    folder = tmp_path_factory.mktemp("places")
    Image.new("RGB", (20, 16), (9, 99, 199)).save(folder / "photo.png")
    Image.new("L", (16, 16), 255).save(folder / "white.png")
    (folder / "text.png").write_text("no picture")
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "precious.txt").write_text("do not touch")
    (folder / "broken.json").write_text("{")
    (folder / "broken.yaml").write_text("a: [")
    os.mkfifo(folder / "pipe")
    names = ["photo.png", "text.png", "empty", "full", "broken.json", "broken.yaml", "pipe", "missing", "full/precious.txt"]
    words = [str(folder / name) for name in names]
    runs = [str(getattr(chain, name)) for name in ("tokenizer", "tokens", "maskgit", "ar")]
    return folder, [*words, *runs, "/dev/null", "/dev/null/x", "", ".", "x" * 300, "\udcff", "/proc/self/mem"]


class Words:
    """The words of a random command line; most options are good, one or two are not."""

    def __init__(self, random: Random, chain: Any, folder: Path, places: list[str], out: Path) -> None:
        self.random, self.chain, self.folder, self.places, self.out = random, chain, folder, places, out
        self.wrong = random.choice([1, 1, 1, 2, 3])

    def pick(self, good: Any, *bad: Any) -> str:
        """The good word, or, as long as faults are still to come, one of the others."""
        if self.wrong and self.random.random() < 0.25:
            self.wrong -= 1
            return str(self.random.choice(bad))
        return str(good)

    def some(self, *options: tuple[str, Any, list[str]]) -> list[str]:
        """A few of the options, each with its value."""
        chosen = self.random.sample(options, self.random.randrange(min(3, len(options)) + 1))
        return [f"{name}={self.pick(good, *bad)}" for name, good, bad in chosen]

    def place(self, good: Any) -> str:
        return self.pick(good, *self.places)

    def written(self, name: str) -> str:
        return self.place(self.out / name)

    def run(self, *kinds: str) -> str:
        return self.place(getattr(self.chain, self.random.choice(kinds)))

    def sampling(self) -> list[str]:
        kind = ["--steps", "--guidance", "--temperature", "--choice-temperature", "--top-k", "--top-p", "--zoom"]
        options = [(name, 1, NUMBERS) for name in kind]
        return [
            *("--class", self.pick("star", *CLASSES), "--pipeline", self.run("maskgit", "ar")),
            *self.some(*options, ("--seeds", "0-1", SEEDS), ("--order", "halton", ["", "x", "raster", "confidence"])),
            *self.some(("--prior", "ar", ["x", "var", ""])),
        ]

    def sample(self) -> list[str]:
        return ["pipeline.sample", *self.sampling(), f"--out={self.written('sample.png')}"]

    def edit(self) -> list[str]:
        holes = ["", "1", "4:8", "8:4,0:2", "0:99,0:99", "-1:2,0:2", f"0:{'9' * 20},0:1", "a:b,c:d"]
        margins = ["", "1", "1,2,3", "-1,0,0,0", "a,b,c,d", "0,0,0,0", "1,1,1,1,1", "²,0,0,0"]
        ways = {
            "--box": self.pick("4:8,4:8", *holes),
            "--mask": self.place(self.folder / "white.png"),
            "--extend": self.pick("0,4,0,0", *margins),
            "--vary": self.pick("0.5", *NUMBERS),
            "--to": self.pick("2", *CLASSES),
        }
        way = self.random.choice(list(ways))
        picture = "interpolate" if way == "--to" else self.place(self.folder / "photo.png")
        more = [f"--images={self.pick(3, *NUMBERS[:8])}"] if way == "--to" else []
        return [
            "pipeline.edit",
            *self.sampling(),
            f"{way}={ways[way]}",
            *more,
            f"--out={self.written('edit.png')}",
            "--",
            picture,
        ]

    def compress(self) -> list[str]:
        common = ["--pipeline", self.run("maskgit", "ar"), *self.some(("--batch-size", 2, NUMBERS))]
        coding = self.some(("--steps", 2, NUMBERS), ("--order", "halton", ["", "x", "confidence", "raster"]))
        action = self.random.choice(["encode", "decode", "measure"])
        if action == "encode":
            own = [f"--out={self.written('file.lgq')}", *common, *coding, *self.some(("--class", "star", CLASSES))]
            return ["pipeline.compress", action, *own, "--", self.place(self.folder / "photo.png")]
        if action == "decode":
            own = ["--pipeline", self.run("maskgit"), f"--out={self.written('pictures')}"]
            return ["pipeline.compress", action, *own, "--", self.random.choice(self.places)]
        own = [*common, *coding, *self.some(("--images", 3, NUMBERS), ("--seed", 1, NUMBERS))]
        return ["pipeline.compress", action, *own, f"--out={self.written('rate.json')}", f"--tokens={self.run('tokens')}"]

    def tokenize(self) -> list[str]:
        options = [(name, 16, NUMBERS) for name in ("--batch-size", "--shard-images")]
        options += [
            ("--workers", 0, ["-1", "x", "1.5"]),
            ("--max-unreadable", 0.5, NUMBERS),
            ("--precision", "no", ["x", "fp16"]),
        ]
        settings = [
            f"data.{key}={value}" for key, value in (("image_size", 16), ("train_per_class", 2), ("validation_per_class", 1))
        ]
        bad = [
            "data.image_size=0",
            "data.train_per_class=x",
            "data.path=/",
            "x",
            "data.",
            "data.image_size=[1]",
            "data.name=folder",
        ]
        words = [
            "--tokenizer",
            self.run("tokenizer"),
            "--data",
            self.pick("shapes", "folder", "shape", "hub", ""),
            *self.some(*options),
        ]
        settings = [self.pick(setting, *bad) for setting in settings]
        return ["pipeline.tokenize_dataset", *words, f"--out={self.written('tokens')}", "--", *settings]

    def export(self) -> list[str]:
        return [
            *("pipeline.export", f"--out={self.written('exported')}", *self.random.choice([[], [], ["--transformers"]])),
            *self.random.choice([[], ["--results", self.random.choice(self.places)]]),
            *("--", self.run("maskgit", "ar")),
        ]

    def train(self) -> list[str]:
        stage = self.random.choice(["stage1_tokenizer", "stage2_prior"])
        tokens = [f"tokens={self.run('tokens')}"] if stage == "stage2_prior" else []
        settings = [
            ("images", 8, NUMBERS),
            ("seed", 1, NUMBERS),
            ("optim.lr", 1e-3, NUMBERS),
            ("x", 1, ["1"]),
            ("batch_size", 4, NUMBERS),
        ]
        config = [f"--config={self.random.choice(self.places)}"] if self.random.random() < 0.3 else []
        dry = [] if config else ["--dry-run"]
        return [f"{stage}.train", *config, *dry, "--", f"run={self.written('run')}", *tokens, *self.some(*settings)]

    def demo(self) -> list[str]:
        return ["pipeline.demo", "--dry-run", f"--run={self.written('demo')}", *self.some(("--x", 1, ["2"]))]

    def evaluate(self) -> list[str]:
        settings = [(name, 40, NUMBERS) for name in ("images", "reference_images", "kid_subsets", "batch_size", "seed")]
        settings += [
            ("extractor", "auto", ["x", "inception", ""]),
            ("maskgit.steps", 2, NUMBERS),
            ("ar.top_p", 0.9, NUMBERS),
            ("maskgit.order", "halton", ["x", "raster", "[1]"]),
        ]
        priors = ["--priors", *(self.run("maskgit", "ar", "tokenizer") for _ in range(self.random.randrange(3)))]
        config = [f"--config={self.random.choice(self.places)}"] if self.random.random() < 0.2 else []
        own = [f"--tokenizer={self.run('tokenizer')}", *config, *priors, f"--out={self.written('eval')}"]
        return ["eval.run", "--dry-run", *own, "--", *self.some(*settings)]

    def report(self) -> list[str]:
        command = self.random.choice(["eval.report", "eval.benchmark.report"])
        return [command, "--dry-run", "--", self.random.choice([*self.places, str(PROJECT / "results/demo")])]

    def reproduce(self) -> list[str]:
        job = PROJECT / "results/benchmark/demo/jobs/quality" / self.random.choice(["lgq-8b-s0", "fsq-8b-s0"])
        options = [f"--{name}={self.run('tokenizer', 'ar')}" for name in ("tokenizer", "prior") if self.random.random() < 0.4]
        return ["pipeline.reproduce", "--dry-run", f"--out={self.written('again')}", *options, "--", self.place(job)]

    def benchmark(self) -> list[str]:
        settings = [
            ("quantizers", "[fsq]", ["[x]", "fsq", "[]", "[fsq,fsq]", "{}", "[{name: fsq, label: a/b}]", "[{label: x}]"]),
            ("bits", "[4]", ["[0]", "[-1]", "[x]", "[1e30]", "4", "[99]", "[nan]"]),
            ("seeds", "[0]", ["[-1]", "[x]", "[0,0]", "[1.5]"]),
            ("images", 40, NUMBERS),
            ("curve_images", 40, NUMBERS),
            ("guidance.ar", "[1]", ["[]", "[x]", "[-1]", "1"]),
            ("perturbations", "[0.5]", ["[2]", "[x]"]),
            ("name", "x", ["a/b", "..", "", "."]),
        ]
        options = self.some(("--jobs", 1, NUMBERS), ("--threads", 1, NUMBERS), ("--leave-after", 1, NUMBERS))
        folders = [f"--runs={self.written('runs')}", f"--results={self.written('results')}"]
        config = self.place(PROJECT / "configs/benchmark/smoke.yaml")
        return ["eval.benchmark.__main__", "--dry-run", *options, *folders, "--", config, *self.some(*settings)]

    def any(self) -> list[str]:
        commands = [self.sample, self.edit, self.compress, self.tokenize, self.export, self.train]
        commands += [self.evaluate, self.report, self.reproduce, self.benchmark]
        words = self.random.choice([*commands, *commands, self.demo])()
        if self.random.random() < 0.1:
            words.insert(self.random.randrange(1, len(words) + 1), self.random.choice(["--help", "-x", "--", "--dry-run", ""]))
        return words


def judge(fuzzer: Any, case: str, code: int, err: str) -> None:
    """Done; or refused in one line with exit code 2, argparse's own with its usage above."""
    lines = [line for line in err.splitlines() if line.strip() and "%|" not in line and "it/s" not in line]
    if code == 0:
        fuzzer.count("worked")
        fuzzer.require(case, "Traceback" not in err, err[-300:])
    elif code != 2 or not lines or "Traceback" in err:
        fuzzer.fault(case, code, err[-400:])
    elif lines[0].startswith("usage:"):
        fuzzer.count("refused")
        fuzzer.require(case, ": error: " in lines[-1], err[-300:])
    else:
        fuzzer.require(case, len(lines) == 1 and lines[0].startswith("error: "), err[-300:])
        fuzzer.refused(case, lines[-1])


def test_command_lines(chain, commands, places, fuzzer, tree, tmp_path, scale):
    folder, words = places
    for number in range(110 * scale):
        out = tmp_path / str(number)
        out.mkdir()
        line = Words(fuzzer.random(number), chain, folder, words, out).any()
        line = [word.replace("\0", "") for word in line]
        before = tree(chain.root, folder)
        pid = commands.start(*line, folder=out)
        watch = threading.Timer(SECONDS, os.kill, (pid, signal.SIGKILL))
        watch.start()
        result = commands.wait(pid)
        watch.cancel()
        case = f"{number}: {' '.join(word[:60] for word in line)!r}"
        judge(fuzzer, case, result.code, result.err)
        after = tree(chain.root, folder)
        changed = {path for path, held in before.items() if after.get(path) != held}
        # a picture that is not the one to edit may be replaced by whoever names it
        replaced = {word.removeprefix("--out=") for word in line if word.startswith("--out=")} - set(line)
        fuzzer.require(case, changed <= {path for path in replaced if path.endswith("photo.png")}, f"changed {changed}")


def test_a_pipe_or_a_device_is_no_file(places, fuzzer, tmp_path):
    folder, _ = places
    pictures = partial(read_picture, side=16)
    for path in (folder / "pipe", Path("/dev/zero"), Path("/dev/stdin")):
        for read in (read_token_file, read_json, read_yaml, pictures, load_pipeline, TokenStore):
            fuzzer.require(path, fuzzer.attempt(f"{path} {read}", read, path) is None, "is read")
    os.mkfifo(tmp_path / "config.yaml")
    os.mkfifo(tmp_path / "state.json")
    (tmp_path / "snapshots/1").mkdir(parents=True)
    (tmp_path / "state.json").rename(tmp_path / "snapshots/1/state.json")
    fuzzer.attempt("snapshot", load_newest_snapshot, tmp_path / "snapshots")
    fuzzer.attempt("a run's configuration", RunFolder(tmp_path).open, load_config(EvalConfig))


REAL = {
    "help": ["-m", "pipeline.edit", "--help"],
    "no command": ["-m", "pipeline.compress"],
    "no run": ["-m", "pipeline.sample", "--class", "1", "--pipeline", "nothing"],
    "no class": ["-m", "pipeline.sample", "--class", "none", "--pipeline", "{ar}"],
    "a picture": ["-m", "pipeline.sample", "--class", "4", "--pipeline", "{ar}", "--out", "made.png"],
    "no picture": ["-m", "pipeline.edit", "text.png", "--class", "4", "--vary", "1", "--pipeline", "{ar}"],
    "no file": ["-m", "pipeline.compress", "decode", "text.png", "--out", "x", "--pipeline", "{ar}"],
    "no place": ["-m", "pipeline.export", "{ar}", "--out", "/dev/null/x"],
    "no tokenizer": ["pipeline/tokenize_dataset.py", "--tokenizer", "text.png"],
    "no tokens": ["stage2_prior/train.py", "tokens=nothing"],
    "no configuration": ["stage1_tokenizer/train.py", "--config", "text.png"],
    "no setting": ["stage1_tokenizer/train.py", "x=1"],
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "no class" else pytest.mark.slow) for name in REAL])
def test_command_lines_as_processes(name, chain, fuzzer, settings, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    words = [word.format(ar=chain.ar) for word in REAL[name]]
    words = [str(PROJECT / word) if word.endswith(".py") else word for word in words]
    environment = os.environ | settings.environment | {"PYTHONPATH": str(PROJECT)}
    result = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    judge(fuzzer, name, result.returncode, result.stderr)
    assert (result.returncode == 0) == (name in ("help", "a picture"))
