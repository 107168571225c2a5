"""A result file is enough to make its numbers again: `python -m pipeline.reproduce`."""

import json
import os
import shutil
import signal

import pytest

from pipeline.reproduction import Compared, read_recorded, remake, table, threads

SMALL = ["images=40", "reference_images=60", "kid_subsets=3", "shown_images=8", "shown_per_group=2", "maskgit.steps=3"]


@pytest.fixture(scope="module")
def evaluated(commands, chain, tmp_path_factory):
    """The folder of an evaluation's results."""
    out = tmp_path_factory.mktemp("evaluated")
    commands.succeed("eval.run", *SMALL, "--tokenizer", chain.tokenizer, "--out", out, "--priors", chain.maskgit)
    return out


def test_the_whole_chain_is_made_again_to_the_bit_from_the_file_alone(commands, evaluated, tmp_path):
    elsewhere = tmp_path / "mailed.json"
    shutil.copy(evaluated / "maskgit" / "result.json", elsewhere)
    done = commands.succeed("pipeline.reproduce", elsewhere, "--out", tmp_path / "again")
    assert "every metric is the same, to the bit" in done.out and "differs" not in done.out
    made = json.loads((tmp_path / "again" / "measured" / "prior" / "result.json").read_text())
    then = json.loads(elsewhere.read_text())
    assert made["inputs"] == then["inputs"] and made["metrics"] == then["metrics"]  # the hashes of the weights among them


def test_another_number_is_seen(commands, chain, evaluated, tmp_path):
    result = json.loads((evaluated / "reconstruction" / "result.json").read_text())
    result["metrics"]["psnr"]["value"] += 0.5
    (tmp_path / "result.json").write_text(json.dumps(result))
    where = ["--tokenizer", chain.tokenizer, "--out", tmp_path / "again"]
    done = commands.run("pipeline.reproduce", tmp_path, *where)
    assert done.code == 4 and f"1 of {len(result['metrics'])} metrics differ" in done.out and "0.5, " in done.out


def test_it_says_what_it_would_do_and_does_nothing(commands, evaluated, tmp_path):
    shown = commands.succeed("pipeline.reproduce", evaluated / "maskgit", "--out", tmp_path / "again", "--dry-run").out
    assert shown.count("\n$ OMP_NUM_THREADS=1 python ") == 4 and not (tmp_path / "again").exists()


def test_what_cannot_be_made_again_is_one_line(commands, chain, evaluated, tmp_path):
    result = json.loads((evaluated / "maskgit" / "result.json").read_text())

    def fails(says: str, *arguments: object, **changed: object) -> None:
        (tmp_path / "result.json").write_text(json.dumps(result | changed))
        done = commands.run("pipeline.reproduce", tmp_path, "--dry-run", *arguments)
        assert done.code == 2 and len(done.error_lines) == 1 and says in done.error_lines[0]

    fails("made of other images", inputs=result["inputs"] | {"data_fingerprint": "0" * 16})
    fails("does not say how it was made", recipe={})
    fails("does not say how its tokenizer was trained", recipe=result["recipe"] | {"tokenizer": {"data": _data(result)}})
    fails("has other weights", "--prior", chain.ar)
    fails("does not say how it was made", recipe={"tokenizer": 3})
    fails("does not say how it was made", recipe={"tokenizer": {"data": {"name": ["x"]}}, "evaluation": {}})


def test_damaged_results_are_refused_in_one_line(evaluated, fuzzer, tmp_path, scale):
    sound = {name: (evaluated / name / "result.json").read_text() for name in ("maskgit", "reconstruction", "real")}
    for number in range(60 * scale):
        random = fuzzer.random(number)
        result = json.loads(sound[random.choice(list(sound))])
        place, key = result, random.choice(["format", "part", "name", "metrics", "inputs", "versions", *["recipe"] * 6])
        while isinstance(place.get(key), dict) and place[key] and random.random() < 0.8:
            place, key = place[key], random.choice(list(place[key]))
        if random.random() < 0.3:
            del place[key]
        else:
            place[key] = random.choice([None, 3, -1, "x", "2", [], {}, [{}], {"a": 1}, True, 10**30])
        (tmp_path / "result.json").write_text(json.dumps(result))
        fuzzer.attempt(f"{number}: {key}", lambda: remake(read_recorded(tmp_path), tmp_path / "again"))
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_a_measurement_of_a_real_benchmark_is_made_again_to_the_bit(commands, tmp_path):
    smoke = ["configs/benchmark/smoke.yaml", "quantizers=[fsq]", "--jobs", 1, "--threads", 1]
    where = ["--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    commands.succeed("eval.benchmark.__main__", *smoke, *where)
    for job in ("quality/fsq-5b-s0", "generation/fsq-5b-s0-maskgit"):
        folder = tmp_path / "results/smoke/jobs" / job
        done = commands.succeed("pipeline.reproduce", folder, "--out", tmp_path / "again" / job)
        assert "every metric is the same, to the bit" in done.out


STOPS = [
    ("pipeline.reproduce", signal.SIGTERM, 143),
    pytest.param("pipeline.demo", signal.SIGINT, 130, marks=pytest.mark.slow),
    pytest.param("pipeline.demo", signal.SIGTERM, 143, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("command, number, code", STOPS)
def test_a_stop_reaches_the_training_that_works_for_it(commands, evaluated, tmp_path, command, number, code):
    run = tmp_path / "run"
    words = ["--run", run] if command == "pipeline.demo" else [evaluated / "maskgit", "--out", run]
    pid = commands.start(command, *words)
    commands.poll(lambda: (run / "tokenizer/stats.jsonl").exists(), 300, pid)
    os.kill(pid, number)
    stopped = commands.wait(pid)
    assert stopped.code == code and "Traceback" not in stopped.err
    assert list((run / "tokenizer/snapshots").glob("[0-9]*"))


def test_a_benchmarks_result_is_made_again_from_its_job(evaluated, tmp_path):
    result = json.loads((evaluated / "maskgit" / "result.json").read_text())
    recipe = result.pop("recipe")
    facts = {"kind": "generation", "method": "lgq", "label": "lgq", "bits": 4, "seed": 0, "prior": "maskgit"}
    inputs = {"stage1": recipe["tokenizer"]["config"], "stage2": recipe["prior"]["config"], "eval": recipe["evaluation"]}
    inputs |= {"guidance": [1.0, 2.0], "curve_images": 40}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "job.json").write_text(json.dumps({"job": facts, "inputs": inputs}))
    remaking = remake(read_recorded(tmp_path), tmp_path / "again")
    assert [step.title.split()[0] for step in remaking.steps] == ["train", "encode", "train", "measure"]
    assert remaking.files[tmp_path / "again" / "benchmark.yaml"]["guidance"] == {"maskgit": [1.0, 2.0]}
    assert remaking.steps[-1].command[3:5] == ["generation", "--prior"]


def test_threads_and_tables():
    assert threads({"threads": 3}) == 3 and threads({"device": "CPU, 2 threads"}) == 2 and threads({"device": "H200"}) is None
    lines = table([Compared("gFD", 200.0, 200.0, 3.0), Compared("PSNR", 20.0, 20.5, 0.25)]).splitlines()
    assert lines[1].endswith("none") and lines[2].endswith("0.5, 2.0 standard errors")


def _data(result):
    return result["recipe"]["tokenizer"]["data"]
