from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.api import ImageGenerator, load_pipeline
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.pixels import to_uint8


@pytest.fixture(scope="module", params=["maskgit", "ar"])
def generator(chain, request):
    return load_pipeline(getattr(chain, request.param))


def pixels(generator, labels, seeds, **options):
    return generator(class_labels=labels, seeds=seeds, output_type="np", **options).images


def test_images_of_every_type_are_the_same(generator):
    labels, seeds = [4, 0, 9], [5, 6, 7]
    array = pixels(generator, labels, seeds)
    assert array.shape == (3, 16, 16, 3) and array.dtype == np.float32 and 0 <= array.min() < array.max() <= 1
    pictures = generator(labels, seeds).images
    assert [picture.size for picture in pictures] == [(16, 16)] * 3
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), np.rint(array * 255))
    tensor = generator(labels, seeds, output_type="pt").images
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    tokens = generator(labels, seeds, output_type="latent").images
    assert tokens.shape == (3, 16, 1) and generator.decode(tokens).equal((tensor * 255).round().to(torch.uint8))
    (only,) = generator(labels, seeds, output_type="np", return_dict=False)
    assert np.array_equal(only, array)


def test_the_same_seed_gives_the_same_image_in_any_batch(generator):
    labels, seeds = [label % 10 for label in range(9)], list(range(100, 109))
    together = pixels(generator, labels, seeds)
    assert len({image.tobytes() for image in together}) > 5
    for row in (0, 4, 8):
        assert np.array_equal(pixels(generator, [labels[row]], [seeds[row]])[0], together[row])
    assert np.array_equal(pixels(generator, labels[::-1], seeds[::-1]), together[::-1])
    in_batches = torch.cat(list(generator.batches(labels, seeds, generator.options(), batch_size=4)))
    assert np.array_equal(in_batches.permute(0, 2, 3, 1).numpy(), np.rint(together * 255))


def test_seeds_count_up_where_none_are_given(generator):
    assert np.array_equal(generator([3, 3], output_type="np").images, pixels(generator, [3, 3], [0, 1]))


def test_a_saved_pipeline_makes_the_same_images(generator, tmp_path):
    generator.save_pretrained(tmp_path)
    expected = pixels(generator, [1, 2], [3, 4])
    for again in (ImageGenerator.from_pretrained(tmp_path), load_pipeline(tmp_path)):
        assert np.array_equal(pixels(again, [1, 2], [3, 4]), expected)  # pyright: ignore[reportArgumentType]
        assert again.classes("star") == [4]
    (tmp_path / "prior/diffusion_pytorch_model.safetensors").write_bytes(b"12")
    with pytest.raises(UserError, match=r"safetensors: damaged"):
        load_pipeline(tmp_path)


def test_a_prior_brings_options_of_sampling_which_calls_may_change(runs, tmp_path):
    file = runs.maskgit / "prior/sampling.json"
    assert load_pipeline(runs.maskgit).options().order == "halton"  # as the training was told
    file.unlink()
    plain = load_pipeline(runs.maskgit)
    assert plain.options().order == "confidence"
    file.write_text('{"steps": 2, "guidance_scale": 2.5, "guidance_interval": [0, 0.5]}')
    generator = load_pipeline(runs.maskgit)
    generator.save_pretrained(tmp_path)
    expected = pixels(plain, [1], [3], num_inference_steps=2, guidance_scale=2.5, guidance_interval=[0, 0.5])
    for again in (generator, ImageGenerator.from_pretrained(tmp_path), load_pipeline(tmp_path)):
        assert (again.options().steps, again.options(steps=3).guidance_scale) == (2, 2.5)
        assert again.options(brought=False) == plain.options()
        assert np.array_equal(pixels(again, [1], [3]), expected)  # pyright: ignore[reportArgumentType]
    mistakes = {
        '{"stepz": 2}': "stepz: .* no such option",
        "[2]": "give names of options",
        '{"steps": "2"}': "steps: '2' is no int",
        '{"top_k": 900.0}': "top_k: 900.0 is no int or null",
        '{"guidance_interval": [0, 0.5, 1]}': "guidance_interval: .*give 0 <= from <= to <= 1",
    }
    for wrong, message in mistakes.items():
        file.write_text(wrong)
        with pytest.raises(UserError, match=f"{file.parent}: sampling: .*{message}"):
            load_pipeline(runs.maskgit)


def test_a_finished_prior_is_given_other_options_by_its_trainings_command(runs, commands, settings):
    again = ("stage2_prior.train", f"run={runs.maskgit}", f"tokens={runs.tokens}", "prior=maskgit", *settings.stage2)
    weights = (runs.maskgit / "prior/diffusion_pytorch_model.safetensors").read_bytes()
    said = commands.succeed(*again, "prior.sampling.steps=5", "prior.sampling.top_k=null").out
    assert "'steps': 5" in said and "finished before" in said
    options = load_pipeline(runs.maskgit).options()
    assert (options.steps, options.order) == (5, "halton")
    assert read_json(runs.maskgit / "prior/training.json")["config"]["prior"]["sampling"]["steps"] == 5
    shown = ("pipeline.sample", "--pipeline", runs.maskgit, "--class", "star", "--out", runs.maskgit / "x.png", "--dry-run")
    assert "steps=5" in commands.succeed(*shown).out and "steps=3" in commands.succeed(*shown, "--steps", 3).out
    assert "steps=12" in commands.succeed(*shown, "--sampler-defaults").out
    failed = commands.run(*again, "prior.sampling.steps=none")
    assert failed.code == 2 and "config.prior.sampling: MaskGITSampling.steps: 'none' is no int; give one" in failed.err
    assert "no options" in commands.succeed(*again, "prior.sampling=null").out
    assert load_pipeline(runs.maskgit).options().steps == 12
    assert (runs.maskgit / "prior/diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_classes_go_by_number_and_name(generator):
    assert generator.classes(7) == [7] and generator.classes("St") == [4, 8]
    with pytest.raises(UserError, match="the nearest: heart"):
        generator.classes("hearth")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"class_labels": [10]}, "class 10; give a class from 0 to 9"),
        ({"class_labels": [-1]}, "class -1; give a class"),
        ({"class_labels": [1, 2], "seeds": [1]}, "2 labels and 1 seeds"),
        ({"class_labels": [1], "guidance_scale": -1}, "guidance_scale"),
        ({"class_labels": [1], "top_k": 0}, "top_k"),
        ({"class_labels": [1], "guidance": 2}, r"guidance: .* has no such option; did you mean guidance_scale\?"),
        ({"class_labels": None}, "class_labels: None; give one for every image, and guidance_scale=0"),
        ({"class_labels": [1.7]}, "class_labels: 1.7; give the number of a class"),
        ({"class_labels": 1.7}, "class_labels: 1.7; give the number of a class"),
        ({"class_labels": torch.tensor([1.0])}, "class_labels: 1.0; give the number of a class"),
        ({"class_labels": [[1, 2]]}, r"class_labels: \[1, 2\]; give the number of a class"),
        ({"class_labels": [1], "seeds": 3}, "seeds: 3; give a list, one for every image"),
        ({"class_labels": [1], "seeds": torch.tensor(3)}, r"seeds: tensor\(3\); give a list"),
        ({"class_labels": [1], "seeds": [1.7]}, "seeds: 1.7; give a whole number"),
        ({"class_labels": [1], "seeds": [2**64]}, f"seeds: {2**64}; give one of 64 bits"),
        ({"class_labels": [1], "generator": 3}, "generator: 3; give a list"),
        ({"class_labels": [1], "output_type": "jpg"}, "output_type: jpg; choose one of pil, np, pt, latent"),
    ],
)
def test_mistakes_are_named(generator, arguments, message):
    with pytest.raises(UserError, match=message):
        generator(**arguments)


def test_labels_and_seeds_may_be_numbers_of_any_kind(generator):
    expected = pixels(generator, [4, 4], [1, 2])
    for label in (torch.tensor(4), np.int64(4), np.array([4, 4]), torch.tensor([4, 4])):
        for seeds in (torch.tensor([1, 2]), np.array([1, 2])):
            assert np.array_equal(pixels(generator, label, seeds), expected)


def test_no_label_gives_no_image(generator):
    assert generator([], []).images == [] and generator.interpolate(0, 1, 0).images == []
    assert generator([], output_type="pt").images.shape == (0, 3, 16, 16)
    assert generator([], output_type="latent").images.shape == (0, 16, 1)
    assert list(generator.batches([], [], generator.options())) == []


def test_steps_are_an_option_of_priors_that_know_more_than_one_order(chain):
    maskgit, autoregressive = load_pipeline(chain.maskgit), load_pipeline(chain.ar)
    few, many = (pixels(maskgit, [1], [1], num_inference_steps=steps) for steps in (1, 9))
    assert not np.array_equal(few, many)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="this prior ended in raster order"):
        pixels(autoregressive, [1], [1], num_inference_steps=4)


def test_bytes_are_the_nearest():
    levels = torch.arange(256).float()
    assert to_uint8(levels / 127.5 - 1).equal(levels.to(torch.uint8))
    assert to_uint8((levels + 0.49).clamp(max=255) / 127.5 - 1).equal(levels.to(torch.uint8))
    assert to_uint8(torch.tensor([-2.0, 2.0])).tolist() == [0, 255]
