"""Coded files from pictures to pictures: the same tokens come back, or one clear line; and the measured rate adds up."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from pipeline.api import TokenStore, load_pipeline
from pipeline.compress_command import identified
from pipeline.core.errors import UserError
from pipeline.core.token_file import TokenFile, read_token_file
from pipeline.editing import encode
from pipeline.token_coding import coding_options, compress, decompress

COMPRESS = "pipeline.compress"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five pictures of the tokenizer's size."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    return SimpleNamespace(files=sorted(folder.iterdir()), images=torch.from_numpy(pixels).permute(0, 3, 1, 2))


@pytest.fixture(scope="module", params=["maskgit", "ar"])
def coded(chain, commands, pictures, request, tmp_path_factory):
    """The pictures in a file, two at a time, under a prior; `path`, `run`, `said`."""
    run, path = getattr(chain, request.param), tmp_path_factory.mktemp("coded") / "five.lgq"
    words = ["encode", *pictures.files, "--out", path, "--pipeline", run, "--class", "star", "--batch-size", 2]
    return SimpleNamespace(path=path, run=run, said=commands.succeed(COMPRESS, *words).out)


@pytest.fixture(scope="module")
def model(coded):
    """The pipeline of `coded`, and its prior as files know it."""
    generator = load_pipeline(coded.run)
    torch.set_flush_denormal(True)  # as the commands do
    yield SimpleNamespace(generator=generator, known=identified(generator.prior, coded.run))
    torch.set_flush_denormal(False)


def test_the_pictures_are_those_of_the_tokens_that_went_in(coded, model, commands, pictures, tmp_path):
    said = commands.succeed(COMPRESS, "decode", coded.path, "--out", tmp_path / "out", "--pipeline", coded.run).out
    assert said == f"{tmp_path / 'out'}: 5 images of {coded.path} by {coded.run}\n"
    expected = model.generator.decode(encode(model.generator, pictures.images)).permute(0, 2, 3, 1).numpy()
    found = [np.asarray(Image.open(tmp_path / f"out/{number:05d}.png")) for number in range(5)]
    assert np.array_equal(np.stack(found), expected)
    size = coded.path.stat().st_size
    assert f"5 images in {size} bytes, {8 * size / (5 * 256):.4f} bits per pixel" in coded.said
    assert set(read_token_file(coded.path).batches[0].labels) == {4}


def test_one_image_is_decoded_by_the_run_that_is_found(coded, chain, commands, tmp_path):
    words = ["decode", coded.path, "--out", tmp_path, "--images", 3]
    shown = commands.succeed(COMPRESS, *words, "--dry-run", folder=chain.root.parent).out
    assert f"1 of 5 images by runs/{coded.run.name}" in shown and not list(tmp_path.iterdir())
    commands.succeed(COMPRESS, *words, folder=chain.root.parent)
    assert [path.name for path in tmp_path.iterdir()] == ["00003.png"]


def test_labels_none_or_of_every_class_and_the_null_class(chain, model):
    tokens, labels = TokenStore(chain.tokens).batch("validation", range(11))
    options = coding_options(model.generator.prior)
    for given in (None, labels.tolist(), [10, *range(10)]):
        content = compress(model.known, tokens, given, options, 4).content
        file = parsed(content)
        assert [label for batch in file.batches for label in batch.labels] == (given or [10] * 11)
        batches = [decompress(model.known, file, batch, "here") for batch in range(3)]
        assert torch.cat(batches).equal(tokens)
    assert parsed(compress(model.known, tokens[:0], [], options).content).batches == []


def test_what_is_not_the_priors_is_refused(chain, model):
    tokens, labels = TokenStore(chain.tokens).batch("validation", range(3))
    options, given = coding_options(model.generator.prior), labels.tolist()
    for wrong, told in ((tokens[:, :-1], given), (tokens + 16, given), (tokens, given[1:]), (tokens, [0, 0, 11])):
        with pytest.raises(UserError, match=r"tokens|labels"):
            compress(model.known, wrong, told, options)
    with pytest.raises(UserError, match=r"coding.stepps: .*no such option"):
        coding_options(model.generator.prior, stepps=3)


def test_other_tokens_than_went_in_never_come_out(coded, model):
    file = read_token_file(coded.path)
    batch = file.batches[0]
    spoilt = {
        "stream": dataclasses.replace(batch, stream=batch.stream[:-4] + b"\0\0\0\0"),
        "shorter": dataclasses.replace(batch, stream=batch.stream[:-4]),
        "longer": dataclasses.replace(batch, stream=batch.stream + b"12345678"),
        "checksum": dataclasses.replace(batch, checksum=batch.checksum ^ 1),
        "labels": dataclasses.replace(batch, labels=[4, 5]),
    }
    for name, wrong in spoilt.items():
        with pytest.raises(UserError, match="here: images 0 to 1 come out as other tokens than went in; encode"):
            decompress(model.known, TokenFile(file.header, [wrong, *file.batches[1:]]), 0, f"{name}, here")
    elsewhere = dataclasses.replace(file.header, environment=dataclasses.replace(file.header.environment, torch="1.0"))
    with pytest.raises(UserError, match=r"here torch .* \(was 1.0\): decode where it was encoded"):
        decompress(model.known, TokenFile(elsewhere, [spoilt["stream"]]), 0, "file")


def test_a_prior_of_other_weights_is_refused_and_one_of_changed_weights_gives_nothing(coded, model):
    file = read_token_file(coded.path)
    for other in ({"prior_sha256": "0" * 64}, {"tokenizer_sha256": "0" * 64}):
        with pytest.raises(UserError, match=f"coded with {next(iter(other)).split('_')[0]} .*, not with this one \\(000000"):
            decompress(dataclasses.replace(model.known, **other), file, 0, "file")
    for change in ({"spec": file.header.spec | {"sizes": [17]}}, {"num_classes": 11}):
        with pytest.raises(UserError, match="not those of this prior"):
            decompress(model.known, TokenFile(dataclasses.replace(file.header, **change), file.batches), 0, "file")
    changed = load_pipeline(coded.run).prior
    with torch.no_grad():
        for weights in changed.parameters():
            weights *= 1.5
    with pytest.raises(UserError, match="other tokens than went in"):
        decompress(dataclasses.replace(model.known, prior=changed), file, 0, "file")


def test_the_number_of_threads_is_that_of_the_file_and_stays_what_it_was(coded, model):
    threads = torch.get_num_threads()
    file = read_token_file(coded.path)
    elsewhere = dataclasses.replace(file.header, environment=dataclasses.replace(file.header.environment, threads=threads + 1))
    used = set()
    hook = register_module_forward_pre_hook(lambda *_: used.add(torch.get_num_threads()))
    with suppress(UserError):  # another number may round otherwise, and the tokens come out as others
        decompress(model.known, TokenFile(elsewhere, file.batches), 0, "file")
    hook.remove()
    assert torch.get_num_threads() == threads and used == {threads + 1}


@pytest.mark.parametrize(("name", "told"), [("maskgit", False), ("ar", True)])
def test_the_measured_rate_adds_up(chain, commands, name, told, tmp_path):
    run, out = getattr(chain, name), tmp_path / "rate.json"
    words = ["measure", "--pipeline", run, "--images", 50, "--batch-size", 16, "--out", out]
    said = commands.succeed(COMPRESS, *words, *([] if told else ["--no-labels"])).out
    assert said.startswith(f"{out}: bits per pixel of 50 images: file ")
    result = json.loads(out.read_text())
    pixel, token = result["bits_per_pixel"], result["bits_per_token"]
    size = out.with_suffix(".lgq").stat().st_size
    assert (result["images"], result["labels"], result["file_bytes"]) == (50, told, size)
    assert pixel["file"] == 8 * size / 50 / 256
    assert (token["nominal"], pixel["nominal"]) == (4.0, 0.25)
    assert token["histogram"] <= token["histogram_corrected"] <= 4.0
    streams, ideal = 50 * 16 * token["streams"], 50 * 16 * token["model"]
    assert 0 <= streams - ideal <= 4 * 64 + 0.01 * ideal  # four batches, whole words each
    assert math.isclose(result["overhead"]["streams_over_model"], streams / ideal - 1, rel_tol=1e-6)
    # exact for AR, a noisy estimate of a bound over all orders for MaskGIT
    assert token["validation"] == pytest.approx(token["model"], rel=1e-5 if "order" not in result["coding"] else 0.2)


def test_a_dry_run_of_measuring_does_nothing(chain, commands, tmp_path):
    shown = commands.succeed(COMPRESS, "measure", "--tokens", chain.tokens, "--dry-run", folder=chain.root.parent).out
    assert f"60 of 60 validation images of {chain.tokens}" in shown and not list(chain.root.glob("rate_*"))


MISTAKES = {
    "missing picture": (["encode", "nothing.png", "--out", "x"], "nothing.png: no such file"),
    "no picture": (["encode", "{file}", "--out", "x", "--pipeline", "{ar}"], "cannot be read as a picture"),
    "no run": (["encode", "{file}", "--out", "x"], "runs: no finished prior"),
    "steps of a prior without": (["encode", "{file}", "--out", "x", "--pipeline", "{ar}", "--steps", "3"], "coding.steps: "),
    "misspelt order": (["measure", "--pipeline", "{maskgit}", "--order", "hilton"], "choose one of random, halton"),
    "several classes": (["encode", "{file}", "--out", "x", "--pipeline", "{ar}", "--class", "st"], "means 2 classes"),
    "no batch": (["encode", "{file}", "--out", "x", "--batch-size", "0"], "--batch-size: 0; give 1 or more"),
    "no images": (["measure", "--images", "0"], "--images: 0; give 1 or more"),
    "no JSON": (["measure", "--out", "rate.lgq"], "ends in .json"),
    "missing file": (["decode", "nothing.lgq", "--out", "x"], "nothing.lgq: cannot be read"),
    "no coded file": (["decode", "{file}", "--out", "x"], "no file of coded tokens"),
    "image outside": (["decode", "{coded}", "--out", "x", "--images", "5"], "--images: 5; "),
    "prior elsewhere": (["decode", "{coded}", "--out", "x"], "is not below runs/; give the pipeline that encoded it"),
    "another prior": (["decode", "{coded}", "--out", "x", "--pipeline", "{other}"], "coded with prior "),
    "cut short": (["decode", "{cut}", "--out", "x", "--pipeline", "{ar}"], "bytes; copy it again"),
    "folder that cannot be": (["decode", "{coded}", "--out", "/dev/null/x", "--pipeline", "{run}"], "choose another --out"),
    "file that cannot be": (["encode", "{picture}", "--out", "/dev/null/x", "--pipeline", "{ar}"], "choose another --out"),
}


@pytest.mark.parametrize("coded", ["ar"], indirect=True)
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_clear_line(name, chain, coded, commands, pictures, tmp_path):
    words, says = MISTAKES[name]
    (tmp_path / "text").write_text("no picture")
    (tmp_path / "cut").write_bytes(coded.path.read_bytes()[:-3])
    other = chain.ar if coded.run == chain.maskgit else chain.maskgit
    places = {"file": tmp_path / "text", "cut": tmp_path / "cut", "coded": coded.path, "run": coded.run, "other": other}
    places |= {"picture": pictures.files[0], "ar": chain.ar, "maskgit": chain.maskgit}
    result = commands.run(COMPRESS, *(word.format(**places) for word in words), folder=tmp_path)
    assert result.code == 2, result.err
    assert len(result.error_lines) == 1 and result.error_lines[0].startswith("error: ") and says in result.err


def parsed(content: bytes) -> TokenFile:
    """A file's contents, through the disk."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return read_token_file(Path(file.name))
