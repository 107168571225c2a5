"""Editing: what is to stay stays bit for bit, what lies in a hole is not seen, and the ends of every scale are known."""

# a call may give a tuple
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.api import load_pipeline
from pipeline.core.errors import UserError
from pipeline.core.token_spec import TokenSpec
from pipeline.editing import blank, encode, hole_tokens, inpaint, outpaint, vary, windows

EDIT = "pipeline.edit"
LABELS, SEEDS = [4, 0, 9], [5, 6, 7]


@pytest.fixture(scope="module", params=["maskgit", "ar"])
def model(chain, request):
    return load_pipeline(getattr(chain, request.param))


@pytest.fixture(scope="module")
def images():
    return torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def masks():
    """A hole at the edge, none, and everything."""
    masks = torch.zeros(3, 16, 16, dtype=torch.bool)
    masks[0, 5:9, 10:] = True
    masks[2] = True
    return masks


def sampled(model, labels, seeds, options):
    return torch.cat(list(model.batches(labels, seeds, options)))


def test_pixels_outside_the_hole_stay_and_those_inside_are_new(model, images, masks):
    before = images.clone()
    filled = inpaint(model, images, masks, LABELS, SEEDS, model.options())
    assert images.equal(before)
    assert torch.where(masks[:, None], 0, filled).equal(torch.where(masks[:, None], 0, images))
    assert filled[1].equal(images[1])
    assert (filled != images)[0, :, 5:9, 10:].float().mean() > 0.9
    assert filled[2].equal(sampled(model, LABELS[2:], SEEDS[2:], model.options())[0])  # nothing was given


def test_what_lies_in_the_hole_is_not_seen(model, images, masks):
    others = torch.where(masks[:, None], 255 - images, images)
    options = model.options()
    assert inpaint(model, others, masks, LABELS, SEEDS, options).equal(inpaint(model, images, masks, LABELS, SEEDS, options))


def test_an_edit_is_the_same_alone_and_in_a_batch(model, images, masks):
    options = model.options()
    together = inpaint(model, images, masks, LABELS, SEEDS, options)
    for row in range(3):
        one = slice(row, row + 1)
        assert inpaint(model, images[one], masks[one], LABELS[one], SEEDS[one], options)[0].equal(together[row])


def test_masks_may_be_bytes(model, images, masks):
    options = model.options()
    filled = inpaint(model, images, masks, LABELS, SEEDS, options)
    for white in (1, 255):
        assert inpaint(model, images, masks.to(torch.uint8) * white, LABELS, SEEDS, options).equal(filled)


@pytest.mark.parametrize("grow", [-1, 0.5])
def test_what_a_hole_cannot_grow_by_is_one_line(model, images, masks, grow):
    with pytest.raises(UserError, match=r"grow: .*; give a whole number of cells"):
        inpaint(model, images, masks, LABELS, SEEDS, model.options(), grow=grow)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pipeline_in_half_precision_edits(chain, images, masks, dtype):
    model, weights = load_pipeline(chain.maskgit), load_pipeline(chain.maskgit).to(dtype)
    model.to(dtype).to(torch.float32)  # the same weights, rounded
    options = model.options()
    assert encode(weights, images).equal(encode(model, images))
    assert {each.dtype for each in weights.tokenizer.parameters()} == {dtype}
    filled = inpaint(weights, images, masks, LABELS, SEEDS, options)
    assert torch.where(masks[:, None], 0, filled).equal(torch.where(masks[:, None], 0, images))
    assert (filled != images)[0, :, 5:9, 10:].float().mean() > 0.9
    assert not vary(weights, images, 0.5, LABELS, SEEDS, options).equal(vary(weights, images, 0.0, LABELS, SEEDS, options))


@pytest.mark.parametrize("pixels", ["cpu", "cuda"])
@pytest.mark.parametrize("holes", ["cpu", "cuda"])
def test_pictures_and_masks_may_lie_on_another_device_than_the_model(pixels, holes):
    """Fake tensors know their devices, and those that operations refuse to mix, without having them."""

    class Tokenizer(torch.nn.Module):
        spec = TokenSpec(sizes=(8,), scales=((4, 4),), image_size=(16, 16))
        device, dtype = torch.device("cuda:0"), torch.float32

        def encode(self, images):
            assert images.device == self.device
            return images.new_zeros(len(images), 16, 1, dtype=torch.long)

    class Prior(torch.nn.Module):
        def sample(self, labels, options, seeds, given, progress):
            return SimpleNamespace(tokens=given)

    def decode(tokens):
        return tokens.new_zeros(len(tokens), 3, 16, 16, dtype=torch.uint8)

    model = SimpleNamespace(tokenizer=Tokenizer(), prior=Prior(), decode=decode)
    with FakeTensorMode():
        images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8, device=pixels)
        masks = torch.ones(2, 16, 16, dtype=torch.bool, device=holes)
        filled = inpaint(model, images, masks, [1, 2], [3, 4], None)  # pyright: ignore[reportArgumentType]
        assert filled.device == images.device and filled.shape == images.shape


def test_no_picture_is_edited_to_none(model, images, masks):
    options, none = model.options(), images[:0]
    assert inpaint(model, none, masks[:0], [], [], options).equal(none)
    assert vary(model, none, 0.5, [], [], options).equal(none)
    assert outpaint(model, none, (4, 0, 0, 8), [], [], options).shape == (0, 3, 20, 24)


def test_variation_goes_from_the_reconstruction_to_a_new_image(model, images):
    options = model.options()
    tokens = encode(model, images)
    assert vary(model, images, 0.0, LABELS, SEEDS, options).equal(model.decode(tokens))
    assert vary(model, images, 1.0, LABELS, SEEDS, options).equal(sampled(model, LABELS, SEEDS, options))
    half = vary(model, images, 0.5, LABELS, SEEDS, options)
    assert not half.equal(model.decode(tokens)) and not half.equal(vary(model, images, 0.5, LABELS, [8, 9, 10], options))
    for strength in (-0.1, 1.1):
        with pytest.raises(UserError, match="strength: "):
            vary(model, images, strength, LABELS, SEEDS, options)


def test_outpainting_keeps_the_picture_and_fills_the_rest(model, images):
    options, margins = model.options(), (0, 20, 5, 16)
    wide = outpaint(model, images[:2], margins, [4, 4], [1, 2], options)
    assert wide.shape == (2, 3, 36, 37)
    assert wide[..., :16, 5:21].equal(images[:2])
    assert wide[..., 16:, :].float().std() > 0 and not wide[0, :, 16:].equal(wide[1, :, 16:])
    assert outpaint(model, images[1:2], margins, [4], [2], options)[0].equal(wide[1])
    assert outpaint(model, images[:1], (0, 0, 0, 0), [4], [1], options).equal(images[:1])
    for wrong in ((0, -1, 0, 0), (0, 1.5, 0, 0), (0, 0, 0)):
        with pytest.raises(UserError, match=r"margins: .*; give whole pixels"):
            outpaint(model, images[:1], wrong, [4], [1], options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("counts", [(2, 3, 3, 3), (3, 2, 3, 3), (3, 3, 2, 3), (3, 3, 3, 2), (1, 3, 3, 3), (3, 3, 0, 3)])
def test_counts_that_differ_are_one_line(model, images, masks, counts):
    some, holes, labels, seeds = images[: counts[0]], masks[: counts[1]], LABELS[: counts[2]], SEEDS[: counts[3]]
    with pytest.raises(UserError, match=r"images, masks, labels, seeds: .*give as many of each"):
        inpaint(model, some, holes, labels, seeds, model.options())
    if len({counts[0], *counts[2:]}) > 1:
        with pytest.raises(UserError, match=r"images, labels, seeds: .*give as many of each"):
            vary(model, some, 0.5, labels, seeds, model.options())
        with pytest.raises(UserError, match=r"images, labels, seeds: .*give as many of each"):
            outpaint(model, some, (4, 0, 0, 0), labels, seeds, model.options())


def test_sizes_that_differ_are_one_line(model, images, masks):
    with pytest.raises(UserError, match="masks: "):
        inpaint(model, images, masks[:, :8], LABELS, SEEDS, model.options())
    with pytest.raises(UserError, match="images of 8 x 16 pixels"):
        outpaint(model, images[..., :8], (4, 0, 0, 0), LABELS, SEEDS, model.options())


def test_a_callback_that_writes_in_place_changes_nothing_unless_it_gives_back(model):
    def spoil(pipeline, step, timestep, tensors):
        tensors["tokens"].fill_(0)
        return {}

    plain = model([4, 0], [5, 6], output_type="latent").images
    assert model([4, 0], [5, 6], output_type="latent", callback_on_step_end=spoil).images.equal(plain)


@pytest.mark.parametrize("canvas, start", [((36, 37), (0, 5)), ((16, 16), (0, 0)), ((21, 40), (5, 24)), ((17, 16), (1, 0))])
def test_windows_cover_the_canvas_and_overlap_those_before(canvas, start):
    known = torch.zeros(canvas, dtype=torch.bool)
    known[start[0] : start[0] + 16, start[1] : start[1] + 16] = True
    for y, x in windows(canvas, (16, 16), start):
        assert y >= 0 and x >= 0 and y + 16 <= canvas[0] and x + 16 <= canvas[1]
        window = known[y : y + 16, x : x + 16]
        assert window.float().mean() >= 0.25, (y, x)
        window[:] = True
    assert known.all()


@pytest.mark.parametrize("grow", [0, 1, 2])
@pytest.mark.parametrize("scales", [((4, 4),), ((1, 1), (2, 2), (4, 4))])
def test_the_tokens_of_a_hole_by_counting(masks, grow, scales):
    spec = TokenSpec(sizes=(8,), scales=scales, image_size=(16, 16))
    found = hole_tokens(masks, spec, grow)
    for row in range(3):
        cells = {(y // 4, x // 4) for y, x in masks[row].nonzero().tolist()}
        near = [[any(max(abs(y - a), abs(x - b)) <= grow for a, b in cells) for x in range(4)] for y in range(4)]
        expected = [
            any(near[y][x] for y in range(4) for x in range(4) if (y * h // 4, x * w // 4) == (i, j))
            for h, w in scales
            for i in range(h)
            for j in range(w)
        ]
        assert found[row].tolist() == expected


def test_holes_are_painted_in_the_mean_colour_of_the_rest(images, masks):
    painted = blank(images, masks)
    rest = images[0].permute(1, 2, 0)[~masks[0]].double().mean(0)
    assert torch.allclose(painted[0, :, 6, 12].double(), rest, atol=0.51)
    assert painted[1].equal(images[1]) and (painted[2] == 128).all()


def test_the_command_fills_extends_and_varies(chain, commands, tmp_path, images):
    photo, mask, out = tmp_path / "photo.png", tmp_path / "hole.png", tmp_path / "deep/edited.png"
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(photo)
    white = np.zeros((16, 16), dtype=np.uint8)
    white[4:8, 2:6] = 255
    Image.fromarray(white).save(mask)
    common = [photo, "--class", 4, "--pipeline", chain.maskgit, "--seeds", "1-2", "--out", out, "--zoom", 1]
    for what in (("--box", "4:8,2:6"), ("--mask", mask)):
        said = commands.succeed(EDIT, *common, *what).out
        assert said == f"{out}: the picture and 2 versions as 4 (star) by {chain.maskgit}\n"
        grid = np.asarray(Image.open(out))
        first, second = (grid[2:18, at : at + 16] for at in (2, 20))
        assert (first[4:8, 2:6] == 128).all() and np.array_equal(first[~(white > 0)], second[~(white > 0)])
    commands.succeed(EDIT, *common, "--extend", "0,4,8,0")
    assert Image.open(out).size == (2 * 26 + 2, 2 * 22 + 2)
    commands.succeed(EDIT, *common, "--vary", 0.5)
    assert Image.open(out).size == (2 * 18 + 2, 2 * 18 + 2)


def test_the_command_goes_from_class_to_class(chain, commands, tmp_path):
    out = tmp_path / "strip.png"
    common = ["interpolate", "--class", "star", "--to", 2, "--images", 3, "--pipeline", chain.ar, "--out", out, "--zoom", 1]
    said = commands.succeed(EDIT, *common, "--seeds", "5-6", "--guidance", 2).out
    assert said == f"{out}: 3 images from 4 (star) to 2 (square) by {chain.ar}\n"
    grid = np.asarray(Image.open(out))
    assert grid.shape == (2 * 18 + 2, 3 * 18 + 2, 3)
    ends = load_pipeline(chain.ar)([4, 2, 4, 2], [5, 5, 6, 6], guidance_scale=2.0).images
    for number, image in enumerate(ends):
        row, column = divmod(number, 2)
        cell = grid[2 + 18 * row : 18 * (row + 1), 2 + 36 * column : 18 + 36 * column]
        assert np.array_equal(cell, np.asarray(image))
    assert "3 images from 4 (star)" in commands.succeed(EDIT, *common, "--dry-run").out
    shutil.copytree(chain.ar / "prior", tmp_path / "runs/ar/prior")  # the newest prior of any kind will do
    common = ["interpolate", "--class", "star", "--to", 2, "--out", out]
    assert "by runs/ar" in commands.succeed(EDIT, *common, "--dry-run", folder=tmp_path).out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--to", "3"], "interpolate: goes with --to"),
        (["--box", "8,8"], "--box: '8,8'; give rows and columns"),
        (["--box", "8:4,0:2"], "holds no pixel"),
        (["--box", "0:17,0:2"], "reaches to row 17"),
        (["--extend", "1,2"], "--extend: '1,2'; give pixels"),
        (["--vary", "2"], "strength: 2.0"),
        (["--mask", "black.png"], "no pixel is brighter than grey"),
        (["--mask", "broken.png"], "cannot be read as a picture"),
    ],
)
def test_mistakes_are_one_line(chain, commands, tmp_path, images, arguments, message):
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    result = commands.run(EDIT, "photo.png", "--class", 4, "--pipeline", chain.maskgit, *arguments, folder=tmp_path)
    assert result.code == 2 and len(result.error_lines) == 1 and message in result.error_lines[0]
    assert not (tmp_path / "edits").exists()
