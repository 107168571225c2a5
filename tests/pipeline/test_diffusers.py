"""What users of diffusers expect of a pipeline: folders that load by themselves, callbacks, generators, a bar, a model card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from huggingface_hub import ModelCard
from PIL import Image

from pipeline.api import Mixture, load_pipeline
from pipeline.core.errors import UserError
from pipeline.core.files import sha256

PROJECT = Path(__file__).resolve().parents[2]
RESULTS = PROJECT / "results/demo"
LOADING = """
import sys
import numpy as np
from diffusers import DiffusionPipeline

folders = sys.argv[1:]
alone = [DiffusionPipeline.from_pretrained(each, custom_pipeline=each, trust_remote_code=True) for each in folders]

from pipeline.api import ImageGenerator, load_pipeline  # only now: the folders have to bring what they need

for folder, first in zip(folders, alone):
    loaded = [first, load_pipeline(folder), ImageGenerator.from_pretrained(folder)]
    assert [type(pipeline) is ImageGenerator for pipeline in loaded] == [True] * 3
    np.save(folder + ".npy", np.stack([pipeline(["star", 2], [3, 4], output_type="np").images for pipeline in loaded]))
"""


@pytest.fixture(scope="module", params=["maskgit", "ar"])
def generator(chain, request):
    pipeline = load_pipeline(getattr(chain, request.param))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pixels(pipe, labels, seeds=None, **options):
    return np.asarray(pipe(labels, seeds, output_type="np", **options).images)


@pytest.fixture
def weights_of():
    """The hashes that a result file has to name to be one of a saved folder's."""
    name = "diffusion_pytorch_model.safetensors"
    return lambda folder: {f"{part}_sha256": sha256(folder / part / name) for part in ("tokenizer", "prior")}


def test_saved_folders_load_in_three_ways_from_anywhere(chain, tmp_path, settings):
    generators = {kind: load_pipeline(getattr(chain, kind)) for kind in ("maskgit", "ar")}
    for kind, generator in generators.items():
        generator.save_pretrained(tmp_path / kind)
        suffixes = {file.suffix for file in (tmp_path / kind).rglob("*") if file.is_file()}
        assert suffixes == {".json", ".md", ".py", ".safetensors"}
    (tmp_path / "elsewhere").mkdir()
    environment = os.environ | settings.environment | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    words = [sys.executable, "-c", LOADING, *(str(tmp_path / kind) for kind in generators)]
    subprocess.run(words, cwd=tmp_path / "elsewhere", env=environment, check=True, capture_output=True)
    for kind, generator in generators.items():
        expected = pixels(generator, [4, 2], [3, 4])
        assert all(np.array_equal(images, expected) for images in np.load(tmp_path / f"{kind}.npy", allow_pickle=False))


def test_only_safetensors_are_written(generator, tmp_path):
    with pytest.raises(UserError, match="safetensors only"):
        generator.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.iterdir())


def test_names_and_numbers_are_the_same_labels(generator):
    expected = pixels(generator, [4, 4], [1, 2])
    assert np.array_equal(pixels(generator, ["star", 4], [1, 2]), expected)
    assert np.array_equal(pixels(generator, torch.tensor([4, 4]), [1, 2]), expected)
    assert np.array_equal(pixels(generator, "star", [1, 2]), expected)  # alone, for all seeds
    with pytest.raises(UserError, match=r"'st' means 2 classes; give numbers such as 4, a whole name"):
        generator(["st"])
    with pytest.raises(UserError, match="the nearest: star"):
        generator("starr")


def test_a_generator_gives_the_seeds(generator):
    def seeded(number):
        return torch.Generator().manual_seed(number)

    both = pixels(generator, [1, 2], generator=seeded(5))
    assert np.array_equal(pixels(generator, [1, 2], generator=seeded(5)), both)
    assert not np.array_equal(pixels(generator, [1, 2], generator=seeded(6)), both)
    one = seeded(5)
    in_turn = [pixels(generator, [label], generator=one)[0] for label in (1, 2)]  # it moves on, as diffusers' do
    assert np.array_equal(np.stack(in_turn), both)
    each = pixels(generator, [1, 2], generator=[seeded(7), seeded(8)])
    assert np.array_equal(pixels(generator, [2], generator=[seeded(8)])[0], each[1])  # in any batch
    state = torch.get_rng_state()
    generator([1])
    assert torch.get_rng_state().equal(state)
    with pytest.raises(UserError, match="give one of them"):
        generator([1], [0], generator=seeded(1))
    with pytest.raises(UserError, match="2 labels and 1 seeds"):
        generator([1, 2], generator=[seeded(1)])


def test_the_callback_sees_every_step_and_changes_nothing_by_looking(generator):
    seen = []

    def look(pipeline, step, timestep, tensors):
        assert pipeline is generator and list(tensors) == ["tokens"]
        seen.append((step, timestep, (tensors["tokens"] >= 0).all(-1).sum(1).tolist()))
        return tensors if step % 2 else {}

    expected = generator([1, 2], [3, 4], output_type="latent").images
    assert generator([1, 2], [3, 4], output_type="latent", callback_on_step_end=look).images.equal(expected)
    steps, left, _ = zip(*seen, strict=True)
    assert steps == tuple(range(len(seen))) and left == tuple(sorted({*left}, reverse=True)) and left[-1] == 0
    known = torch.tensor([counts for _, _, counts in seen])
    assert ((known.diff(dim=0) > 0) | (known[1:] == 16)).all() and (known[-1] == 16).all()
    empty = generator([1, 2], [3, 4], callback_on_step_end=lambda *given: {}, callback_on_step_end_tensor_inputs=[])
    assert len(empty.images) == 2


def test_the_callback_may_change_known_tokens(generator):
    first = []

    def change(pipeline, step, timestep, tensors):
        first.append(tensors["tokens"])
        return {"tokens": torch.where(tensors["tokens"] >= 0, 7, 9)} if step == 0 else {}

    changed = generator([1, 2], [3, 4], output_type="latent", callback_on_step_end=change).images
    assert changed[first[0] >= 0].eq(7).all()
    assert (first[1] < 0).any() and not changed[first[0] < 0].eq(9).all()  # what was unknown is not the callback's to fill
    assert changed.equal(first[-1])


def test_an_interrupted_call_shows_what_is_known(generator):
    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 2
        seen.append(tensors["tokens"])
        return {}

    seen = []
    tokens = generator([1, 2], [3, 4], output_type="latent", callback_on_step_end=stop).images
    assert len(seen) == 3 and tokens.equal(seen[-1]) and (tokens < 0).any()
    images = (generator([1, 2], [3, 4], output_type="pt", callback_on_step_end=stop).images * 255).round().to(torch.uint8)
    unknown = (tokens < 0).view(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(images)
    assert (images[unknown] == 128).all() and not (images[~unknown] == 128).all()
    assert not (generator([1, 2], [3, 4], output_type="latent").images < 0).any()  # the next call is whole


def test_wrong_callbacks_are_named(generator):
    for changed, message in ((lambda t: t[:, 1:], "tokens of shape"), (lambda t: t * 0 + 16, r"a token outside \[16\]")):
        with pytest.raises(UserError, match=message):
            generator([1], callback_on_step_end=lambda p, s, t, given: {"tokens": changed(given["tokens"])})  # noqa: B023
    with pytest.raises(UserError, match="gave back NoneType"):
        generator([1], callback_on_step_end=lambda *given: None)
    with pytest.raises(UserError, match="tensor_inputs: latents; there are tokens"):
        generator([1], callback_on_step_end_tensor_inputs=["latents"])


def test_the_bar_counts_the_steps_and_can_be_switched_off(chain, capsys):
    maskgit = load_pipeline(chain.maskgit)
    maskgit([1], num_inference_steps=5)
    assert "5/5" in capsys.readouterr().err
    maskgit.set_progress_bar_config(disable=True)
    maskgit([1], num_inference_steps=5)
    assert capsys.readouterr().err == ""


def test_editing_is_there_as_methods(generator):
    noise = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise[0].permute(1, 2, 0).numpy())
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, 4:12, 8:] = True
    white = Image.fromarray(mask[0].numpy().astype(np.uint8) * 255)
    from_tensors = generator.inpaint(noise, mask, "star", [1, 2], output_type="np", temperature=0.9).images
    from_bytes = generator.inpaint(noise, mask.to(torch.uint8), "star", [1, 2], output_type="np", temperature=0.9).images
    assert np.array_equal(from_bytes, from_tensors)
    from_pictures = generator.inpaint(picture, white, ["star", 4], [1, 2], output_type="np", temperature=0.9).images
    assert np.array_equal(from_tensors, from_pictures) and not np.array_equal(from_tensors[0], from_tensors[1])
    kept = np.asarray(picture)[~mask[0].numpy()]
    assert all(np.array_equal(np.rint(image[~mask[0].numpy()] * 255), kept) for image in from_tensors)
    assert [image.size for image in generator.outpaint([picture], (0, 0, 3, 5), 4, [1, 2]).images] == [(24, 16)] * 2
    steps = []
    generator.vary(picture, 0.5, 4, callback_on_step_end=lambda p, step, t, given: (steps.append(step), {})[1])
    assert steps == list(range(len(steps))) and len(steps) > 1
    for type_ in ("jpg", "latent"):  # an edit copies pixels, which no tokens hold
        with pytest.raises(UserError, match=f"output_type: {type_}; choose one of pil, np, pt$"):
            generator.vary(picture, 0.5, 4, output_type=type_, callback_on_step_end=lambda *given: pytest.fail("too late"))
    odd = [picture, picture.resize((8, 8))]
    for wrong, message in ((noise.float(), "a tensor of torch.float32"), ([], "give PIL images"), (odd, "2 different sizes")):
        with pytest.raises(UserError, match=message):
            generator.inpaint(wrong, mask, 4)


def test_interpolation_goes_from_class_to_class(generator):
    strip = generator.interpolate("star", 2, 5, seed=7, output_type="np", guidance_scale=2.0).images
    assert len(strip) == 5
    ends = pixels(generator, ["star", 2], [7, 7], guidance_scale=2.0)
    assert np.array_equal(strip[0], ends[0]) and np.array_equal(strip[-1], ends[1])
    assert np.array_equal(strip[1], pixels(generator, Mixture("star", 2, 0.25), [7], guidance_scale=2.0)[0])
    same = generator.interpolate(4, 4, 3, seed=7, output_type="np").images
    assert np.array_equal(same[0], same[1]) and np.array_equal(same[0], same[2])


def test_an_interpolation_has_one_seed_which_a_generator_may_give(generator):
    def strip(**seed):
        return generator.interpolate("star", 2, 3, output_type="latent", **seed).images

    def seeded():
        return torch.Generator().manual_seed(5)

    drawn = pixels(generator, ["star"], generator=seeded())
    assert np.array_equal(generator.interpolate("star", 2, 3, generator=seeded(), output_type="np").images[:1], drawn)
    assert strip(generator=seeded()).equal(strip(generator=seeded())) and not strip(generator=seeded()).equal(strip())
    assert strip().equal(strip(seed=0))
    for wrong in ({"seeds": [1, 2, 3]}, {"seed": 1, "generator": seeded()}, {"generator": [seeded()] * 3}):
        with pytest.raises(UserError, match="all images of an interpolation have one seed; give seed="):
            strip(**wrong)
    for count in (-1, 2.5):
        with pytest.raises(UserError, match=r"images: .*; give a whole number"):
            generator.interpolate("star", 2, count)


def test_the_hooks_of_offloading_fire_before_every_part_that_works(generator):
    """accelerate's hooks, which move a part to its device, wait for `forward`; no call here uses that."""
    fired = []

    class Note(ModelHook):
        def __init__(self, name):
            self.name = name

        def pre_forward(self, module, *args, **kwargs):
            fired.append(self.name)
            return args, kwargs

    parts = {name: getattr(generator, name) for name in generator.model_cpu_offload_seq.split("->")}
    for name, part in parts.items():
        add_hook_to_module(part, Note(name))
    try:
        generator([1], [2])
        list(generator.batches([1], [2], generator.options()))
        assert fired == ["prior", "tokenizer"] * 2
        picture, mask = torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.ones(1, 16, 16, dtype=torch.bool)
        for edit in (generator.vary, generator.inpaint, generator.outpaint):
            fired.clear()
            edit(picture, {"vary": 0.5, "inpaint": mask, "outpaint": (0, 4, 0, 0)}[edit.__name__], [1], [2])
            assert fired == ["tokenizer", "prior", "tokenizer"]
    finally:
        for part in parts.values():
            remove_hook_from_module(part)


def test_the_model_card_has_the_numbers_of_these_weights_and_no_others(generator, tmp_path, weights_of):
    folder = tmp_path / "saved"
    generator.save_pretrained(folder)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "diffusers" and not card.data.eval_results  # pyright: ignore[reportAttributeAccessIssue]
    assert "None were given" in card.text and f'load_pipeline("{folder.name}")' in card.text

    for name in ("maskgit", "ar", "reconstruction", "validation"):
        result = json.loads((RESULTS / f"{name}.json").read_text())
        if name == "maskgit":
            result["inputs"] |= weights_of(folder)
        (tmp_path / "eval" / name).mkdir(parents=True)
        (tmp_path / "eval" / name / "result.json").write_text(json.dumps(result))
    generator.save_pretrained(folder, results=tmp_path / "eval")
    card = ModelCard.load(folder / "README.md")
    metrics = json.loads((RESULTS / "maskgit.json").read_text())["metrics"]
    found = {entry.metric_type: entry.metric_value for entry in card.data.eval_results}  # pyright: ignore[reportAttributeAccessIssue]
    assert found == {name: metric["value"] for name, metric in metrics.items()}
    for metric in metrics.values():
        assert metric["label"] in card.text and f"{metric['value']:.4g}" in card.text
    assert "guidance_scale 3.0" in card.text

    (tmp_path / "eval/maskgit/result.json").unlink()
    with pytest.raises(UserError, match="none of its 3 results is of these weights"):
        generator.save_pretrained(folder, results=tmp_path / "eval")


def test_the_card_goes_up_with_the_folder(generator, monkeypatch):
    """Up to the network: what would be uploaded is looked at, not sent."""
    uploaded = {}

    def upload(self, *, repo_id, folder_path, commit_message):
        uploaded[repo_id] = {file.name: file.read_text() for file in Path(folder_path).iterdir() if file.is_file()}
        return type("Commit", (), {"commit_url": "there"})

    repository = type("Repository", (), {"repo_id": "me/stars"})
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, repo_id, **options: repository)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    assert generator.push_to_hub("stars") == "there"
    assert set(uploaded["me/stars"]) == {"README.md", "pipeline.py", "model_index.json"}
    assert "# me/stars" in uploaded["me/stars"]["README.md"]
