"""The command lines: what they answer to --help, to --dry-run and to every mistake that we could think of."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
TRAIN1, TRAIN2 = "stage1_tokenizer.train", "stage2_prior.train"
TOKENIZE, SAMPLE = "pipeline.tokenize_dataset", "pipeline.sample"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCRIPTS = [
    ["stage1_tokenizer/train.py"],
    ["stage2_prior/train.py"],
    ["pipeline/tokenize_dataset.py"],
    ["-m", "pipeline.sample"],
    ["-m", "pipeline.compress"],
    ["-m", "pipeline.export"],
    ["-m", "pipeline.demo"],
    ["-m", "pipeline.reproduce"],
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script[-1])
def test_help_teaches_at_once(script):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run([sys.executable, *script, "--help"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert "--dry-run" in shown and len(shown.splitlines()) > 5


def test_dry_runs_say_what_would_happen_and_do_nothing(chain, commands, settings, tmp_path):
    nowhere = tmp_path / "nowhere"
    shown = commands.succeed(TRAIN1, f"run={nowhere}", "--dry-run", *settings.stage1).out
    assert "4x4 tokens of 16 codes, 4.00 bits per token, 64 per image" in shown and "codebook_size: 16" in shown
    shown = commands.succeed(TRAIN2, f"run={nowhere}", "--dry-run", f"tokens={chain.tokens}", "prior=ar", *settings.stage2).out
    assert "M parameters" in shown and "120 images for training, 60 for validation" in shown and "name: ar" in shown
    shown = commands.succeed(TOKENIZE, "--tokenizer", chain.tokenizer, "--out", nowhere, "--dry-run").out
    assert "120 images of train" in shown and str(nowhere) in shown
    shown = commands.succeed(SAMPLE, "--pipeline", chain.ar, "--class", "star", "--out", nowhere, "--dry-run").out
    assert "1 images of 4 (star)" in shown
    assert "stage2_prior/train.py" in commands.succeed("pipeline.demo", "--run", nowhere, "--dry-run").out
    assert not nowhere.exists()


def test_a_finished_run_is_left_alone(chain, commands, settings):
    before = (chain.tokenizer / "stats.jsonl").stat().st_mtime_ns
    assert "finished before" in commands.succeed(TRAIN1, f"run={chain.tokenizer}", *settings.stage1).out
    assert (chain.tokenizer / "stats.jsonl").stat().st_mtime_ns == before


def test_a_first_attempt_with_a_mistake_does_not_block_the_second(commands, settings, tmp_path):
    arguments = [f"run={tmp_path / 'run'}", *settings.stage1, "images=8"]
    assert commands.run(TRAIN1, *arguments, "data.train_per_clas=3").code == 2
    commands.succeed(TRAIN1, *arguments)


def mistake(*arguments: object, says: str, spoil=lambda runs: None):
    """A command line with placeholders such as {runs.ar}, what its error must contain, and what to spoil before."""
    return [str(argument) for argument in arguments], says, spoil


def truncate(part: str):
    return lambda runs: [path.write_bytes(b"") for path in runs.root.glob(part)] or pytest.fail(f"nothing matches {part}")


def reopen(run: str):
    """Make a finished run an unfinished one with empty snapshots."""

    def spoil(runs):
        for part in ("tokenizer", "prior"):
            shutil.rmtree(runs.root / run / part, ignore_errors=True)
        truncate(f"{run}/snapshots/*/state.safetensors")(runs)

    return spoil


def edit(part: str, **changes: object):
    def spoil(runs):
        path = runs.root / part
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def other_tokens(runs) -> None:
    shutil.rmtree(runs.ar / "prior")
    edit("tokens/identity.json", tokenizer_sha256="0" * 64)(runs)


S1 = [TRAIN1, "run={tmp}/run", "{stage1}"]
S2 = [TRAIN2, "run={tmp}/run", "tokens={runs.tokens}", "{stage2}"]
AR, MASKGIT = [SAMPLE, "--pipeline", "{runs.ar}", "--class"], [SAMPLE, "--pipeline", "{runs.maskgit}", "--class"]
ENCODE = [TOKENIZE, "--tokenizer", "{runs.tokenizer}", "--out", "{tmp}/tokens"]
MISTAKES = {
    "misspelt key": mistake(*S1, "optim.lrr=1", says="config.optim.lrr: no such setting; did you mean lr?"),
    "misspelt quantizer": mistake(*S1, "quantizer=lqg", says="did you mean lgq?"),
    "misspelt option of a quantizer": mistake(*S1, "quantizer.comitment_weight=1", says="did you mean commitment_weight"),
    "misspelt option of the data": mistake(*S1, "data.train_per_clas=1", says="did you mean train_per_class?"),
    "not a setting": mistake(*S1, "hello", says="hello: not an override; write key=value"),
    "text for a number": mistake(*S1, "images=many", says="config.images: 'many' is not an int"),
    "infinite number": mistake(*S1, "images=.inf", says="config.images: inf is not an int"),
    "no images": mistake(*S1, "images=0", says="at least 1"),
    "missing configuration": mistake(TRAIN1, "--config", "configs/stage1/dem.yaml", says="did you mean demo.yaml?"),
    "indivisible image size": mistake(*S1, "image_size=18", says="18 pixels cannot be cut into tokens of 4; use 20"),
    "unnormalisable width": mistake(*S1, "backbone.channels=[17]", says="17 is not a multiple of 16"),
    "negative codebook": mistake(*S1, "quantizer.codebook_size=-4", says="codebook_size"),
    "empty data folder": mistake(*S1[:2], "data=folder", "data.path={tmp}", "quantizer=vq", "images=8", says="data.path: "),
    "data without a path": mistake(*S1[:2], "data=folder", "quantizer=vq", "images=8", says="data.path: missing"),
    "fp16 on a CPU": mistake(*S1, "precision=fp16", says="precision: fp16 needs a GPU"),
    "folder that cannot be": mistake(TRAIN1, "run=/dev/null/run", "{stage1}", says="/dev/null/run: cannot be written"),
    "another configuration": mistake(TRAIN1, "run={runs.tokenizer}", "{stage1}", "seed=1", says="seed was 0, now 1"),
    "0-byte snapshots": mistake(
        TRAIN1, "run={runs.tokenizer}", "{stage1}", says="damaged snapshot (0 bytes", spoil=reopen("tokenizer")
    ),
    "missing tokens": mistake(TRAIN2, "tokens={tmp}/nothing", "{stage2}", says="nothing: no token store here"),
    "unfinished tokens": mistake(*S2, says="unfinished token store", spoil=lambda runs: (runs.tokens / "store.json").unlink()),
    "truncated tokens": mistake(*S2, says="damaged shard", spoil=truncate("tokens/train/00001/*.arrow")),
    "misspelt prior": mistake(*S2, "prior=maskgitt", says="did you mean maskgit?"),
    "misspelt option of a prior": mistake(*S2, "prior.depht=1", says="depht"),
    "misspelt option of a sampler": mistake(*S2, "prior.sampling.stepz=1", says="prior.sampling: stepz: MaskGITSampling"),
    "tokens of another tokenizer": mistake(
        *[TRAIN2, "run={runs.ar}", "tokens={runs.tokens}", "prior=ar", "{stage2}"],
        says="tokens of tokenizer 0000",
        spoil=other_tokens,
    ),
    "0-byte snapshots of a prior": mistake(
        *[TRAIN2, "run={runs.ar}", "tokens={runs.tokens}", "prior=ar", "{stage2}"], says="damaged snapshot", spoil=reopen("ar")
    ),
    "missing tokenizer": mistake(TOKENIZE, "--tokenizer", "{tmp}/nothing", says="nothing: no such run"),
    "no tokenizer at all": mistake(TOKENIZE, says="runs: no finished tokenizer"),
    "unfinished tokenizer": mistake(
        *ENCODE, says="has not finished", spoil=lambda runs: shutil.rmtree(runs.tokenizer / "tokenizer")
    ),
    "0-byte tokenizer": mistake(*ENCODE, says=f"{WEIGHTS}: empty (0 bytes)", spoil=truncate(f"tokenizer/tokenizer/{WEIGHTS}")),
    "unknown data": mistake(*ENCODE, "--data", "shape", says="did you mean shapes?"),
    "setting that is not the data's": mistake(*ENCODE, "optim.lr=1", says="write data.option=value"),
    "empty batches": mistake(*ENCODE, "--batch-size", "0", says="--batch-size: 0; give 1 or more"),
    "store of other tokens": mistake(
        *[TOKENIZE, "--tokenizer", "{runs.tokenizer}", "--no-mirror", "--shard-images", "16"], says="tokens of another mirrored"
    ),
    "missing run": mistake(SAMPLE, "--class", "1", "--pipeline", "{tmp}/nothing", says="nothing: no such run"),
    "no run at all": mistake(SAMPLE, "--class", "1", says="runs: no finished prior"),
    "no run of a kind": mistake(SAMPLE, "--class", "1", "--prior", "ar", says="runs: no finished ar"),
    "unfinished prior": mistake(*AR, "1", says="has not finished", spoil=lambda runs: shutil.rmtree(runs.ar / "prior")),
    "unknown class": mistake(*AR, "strr", says="the nearest: star"),
    "class out of range": mistake(*AR, "10", says="class: 10; the classes are numbered 0 to 9"),
    "0-byte prior": mistake(*AR, "1", says=f"{WEIGHTS}: empty (0 bytes)", spoil=truncate(f"ar/prior/{WEIGHTS}")),
    "0-byte configuration": mistake(*AR, "1", says="config.json: empty", spoil=truncate("ar/prior/config.json")),
    "0-byte description": mistake(*AR, "1", says="tokens.json: not valid JSON", spoil=truncate("ar/prior/tokens.json")),
    "another version's description": mistake(*AR, "1", says="not of this version", spoil=edit("ar/prior/tokens.json", more=1)),
    "changed tokenizer": mistake(
        *AR, "1", says="is not the one", spoil=edit("ar/prior/tokens.json", tokenizer_sha256="0" * 64)
    ),
    "moved tokenizer": mistake(*AR, "1", says="no such run", spoil=lambda runs: shutil.rmtree(runs.tokenizer)),
    "seeds that are text": mistake(*AR, "1", "--seeds", "a", says="--seeds: 'a'"),
    "seeds from large to small": mistake(*AR, "1", "--seeds", "5-2", says="--seeds: '5-2'"),
    "negative seed": mistake(*AR, "1", "--seeds=-3", says="--seeds: '-3'"),
    "huge seed": mistake(*AR, "1", "--seeds", "9" * 30, says="--seeds: "),
    "steps of a prior without": mistake(*AR, "1", "--steps", "4", says="this prior ended in raster order"),
    "no steps": mistake(*MASKGIT, "1", "--steps", "0", says="give 1 or more"),
    "misspelt order": mistake(*MASKGIT, "1", "--order", "hilton", says="halton"),
    "negative temperature": mistake(*MASKGIT, "1", "--temperature=-1", says="temperature"),
    "no zoom": mistake(*AR, "1", "--zoom", "0", says="--zoom: 0; give 1 or more"),
    "out without an image's name": mistake(*AR, "1", "--out", "{tmp}/picture.xyz", says="choose another --out"),
    "out in a file": mistake(*AR, "1", "--out", "/dev/null/picture.png", says="choose another --out"),
    "out is a folder": mistake(*AR, "1", "--out", "{tmp}", says="choose another --out"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_clear_line_and_exit_code_2(name, request, commands, settings, tmp_path):
    (module, *arguments), says, spoil = MISTAKES[name]
    runs = request.getfixturevalue("runs") if "{runs." in " ".join(arguments) else None
    spoil(runs)
    words = []
    for argument in arguments:
        lists = {"{stage1}": settings.stage1, "{stage2}": settings.stage2}
        words += lists.get(argument) or [argument.format(runs=runs, tmp=tmp_path)]
    (tmp_path / "empty").mkdir()
    result = commands.run(module, *words, folder=tmp_path / "empty")
    assert result.code == 2, result.err
    assert len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("error: ") and says in result.err


def test_a_launched_command_stops_with_its_launcher(commands, settings, tmp_path):
    # `accelerate launch` sets this variable, and dies of SIGTERM without passing it on
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-m', {TRAIN1!r}, *sys.argv[1:]])"
    run = tmp_path / "run"
    words = [sys.executable, "-c", program, f"run={run}", *settings.stage1, "images=4000000", "snapshot_every=1000000"]
    environment = os.environ | {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    commands.poll(lambda: (run / "stats.jsonl").exists() or launcher.poll() is not None)
    launcher.terminate()
    assert launcher.stderr is not None
    said = launcher.stderr.read()  # until the child has closed it too
    launcher.wait()
    assert "stopped by SIGTERM; run the same command again to go on" in said
    assert len(list(run.glob("snapshots/*"))) == 1
