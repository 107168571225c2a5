"""The configurations for ImageNet: each resolves and can be costed, and shrunk they run on a folder of ImageNet's shape."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.config import CONFIGS, load_config, read_yaml
from pipeline.core.data.folder import folder
from pipeline.core.data.positions import epoch_order
from pipeline.core.token_store import SPLITS, TokenIdentity, TokenStore, TokenStoreWriter
from stage1_tokenizer.config import Stage1Config
from stage1_tokenizer.training import dry_run as dry_run_tokenizer
from stage2_prior.config import Stage2Config
from stage2_prior.training import dry_run as dry_run_prior
from stage2_prior.training import new_prior

CLASSES = 1000
GOLDEN_RETRIEVER = 207
# files without `run` are what others include
STAGE1, STAGE2 = (
    sorted(file.stem for file in (CONFIGS / stage).glob("*.yaml") if "run" in read_yaml(file)) for stage in ("stage1", "stage2")
)
OWN_STAGE1 = [name for name in STAGE1 if name.startswith(("imagenet", "folder"))]
OWN_STAGE2 = [name for name in STAGE2 if name.endswith(("_b", "_l"))]

SMALL_TOKENIZER = [
    *("images=16", "batch_size=4", "workers=0", "report_every=4", "quantizer.codebook_size=64", "backbone.channels=[16]"),
    *("backbone.layers=1", "backbone.attention=false", "loss.perceptual=none", "loss.discriminator_channels=8"),
]
SMALL_PRIOR = [
    *("images=16", "batch_size=4", "report_every=4", "validation_images=8", "prior.size=nano", "prior.depth=1"),
    *("prior.width=32", "prior.heads=2"),
]


def small_tokenizer(name: str, imagenet: Path) -> list[str]:
    """Settings that leave the resolution and the grid of a configuration, and little of its work."""
    factor = load_config(Stage1Config, f"configs/stage1/{name}.yaml").backbone.factor
    return [f"data.path={imagenet}", f"backbone.patch={factor}", *SMALL_TOKENIZER]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1000 synset folders of two training and one validation JPEG of odd sizes; the fourth image of a training is broken."""
    root = tmp_path_factory.mktemp("imagenet")
    draw = np.random.default_rng(0)
    synsets = [f"n{1440764 + 8191 * label:08d}" for label in range(CLASSES)]
    for split, count in (("train", 2), ("val", 1)):
        for label, synset in enumerate(synsets):
            (root / split / synset).mkdir(parents=True)
            for number in range(count):
                height, width = draw.integers(33, 90, 2)
                pixels = draw.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((int(width), int(height)))
                mode = "CMYK" if (split, label, number) == ("train", 3, 0) else "L" if label % 50 == 7 else "RGB"
                file = root / split / synset / f"{synset}_{number}.JPEG"
                image.convert(mode).save(file, "jpeg", quality=60)
    fourth = broken_file(root)
    fourth.write_bytes(fourth.read_bytes()[:100])
    return root


def broken_file(imagenet: Path) -> Path:
    """The file that position 3 of a training with seed 0 reads."""
    row = int(epoch_order(0, 0, 2 * CLASSES).indices[3])
    return sorted((imagenet / "train").rglob("*.JPEG"))[row]


@pytest.fixture(scope="module")
def work(imagenet, commands, tmp_path_factory) -> Path:
    """A folder in which the README's commands were run on that data, shrunk: tokenizer, tokens and both priors."""
    work = tmp_path_factory.mktemp("work")
    config = ("--config", "configs/stage1/imagenet128_f16.yaml")
    trained = commands.succeed("stage1_tokenizer.train", *config, *small_tokenizer("imagenet128_f16", imagenet), folder=work)
    complaint = f"unreadable image, left out: {broken_file(imagenet)}"
    assert trained.err.count("unreadable") == trained.err.count(complaint) == 1
    encode = ("--tokenizer", "runs/imagenet128_f16/tokenizer", "--shard-images", 1500)
    encoded = commands.succeed("pipeline.tokenize_dataset", *encode, folder=work)
    assert encoded.err.count("unreadable") == encoded.err.count(complaint) == 1
    assert "1999 + 1000 images" in encoded.out and "1 unreadable" in encoded.out
    tokens = "tokens=runs/imagenet128_f16/tokens"
    for prior in ("ar_b", "maskgit_b"):
        config = ("--config", f"configs/stage2/{prior}.yaml", f"run=runs/imagenet128_f16/{prior}")
        commands.succeed("stage2_prior.train", *config, tokens, *SMALL_PRIOR, folder=work)
    return work


def test_every_class_and_every_readable_image_becomes_tokens(work, imagenet):
    store = TokenStore(work / "runs/imagenet128_f16/tokens")
    assert store.unreadable == [str(broken_file(imagenet))]
    assert store.num_classes == CLASSES
    assert store.identity.class_names[GOLDEN_RETRIEVER] == "golden retriever"
    assert store.identity.class_ids == sorted(path.name for path in (imagenet / "train").iterdir())
    labels = torch.tensor(store.splits["train"]["label"][:])
    assert labels.bincount().sum() == 2 * CLASSES - 1 and (labels.bincount() >= 1).all()


def test_the_files_are_in_colour_grey_and_cmyk(imagenet):
    readable = set((imagenet / "train").rglob("*.JPEG")) - {broken_file(imagenet)}
    assert {Image.open(path).mode for path in readable} == {"RGB", "L", "CMYK"}


@pytest.mark.parametrize("query", [str(GOLDEN_RETRIEVER), "golden retriever"])
def test_a_class_by_number_or_by_name_becomes_a_picture(work, commands, query):
    said = commands.succeed("pipeline.sample", "--class", query, "--steps", 4, "--prior", "maskgit", folder=work).out
    match = re.fullmatch(r"(samples/\S+\.png): 1 image of 207 \(golden retriever\) from runs/imagenet128_f16/maskgit_b\n", said)
    assert match, said
    with Image.open(work / match[1]) as picture:
        assert picture.size == (128, 128)


def test_number_and_name_give_the_same_picture_and_ar_another(work, commands):
    for query, prior in (("207", "ar"), ("golden retriever", "ar"), ("207", "maskgit")):
        out = f"{query[:3]}_{prior}.png"
        commands.succeed("pipeline.sample", "--class", query, "--prior", prior, "--seeds", 5, "--out", out, folder=work)
    assert (work / "207_ar.png").read_bytes() == (work / "gol_ar.png").read_bytes() != (work / "207_maskgit.png").read_bytes()


def test_a_misspelt_class_is_one_line_with_the_nearest_names(work, commands):
    failed = commands.run("pipeline.sample", "--class", "golden retreiver", folder=work)
    assert failed.code == 2
    (line,) = failed.error_lines
    assert "golden retriever" in line


@pytest.mark.parametrize("name", [name for name in OWN_STAGE1 if name != "imagenet128_f16"])
def test_every_tokenizer_configuration_trains_a_few_steps(imagenet, commands, tmp_path, name):
    config = ("--config", f"configs/stage1/{name}.yaml", "micro_batch=2")
    commands.succeed("stage1_tokenizer.train", *config, *small_tokenizer(name, imagenet), folder=tmp_path)
    assert (tmp_path / load_config(Stage1Config, f"configs/stage1/{name}.yaml").run / "tokenizer/config.json").exists()


@pytest.mark.parametrize("name", [name for name in OWN_STAGE2 if name.endswith("_l")])
def test_the_large_priors_train_a_few_steps(work, commands, tmp_path, name):
    config = ("--config", f"configs/stage2/{name}.yaml", f"tokens={work / 'runs/imagenet128_f16/tokens'}")
    commands.succeed("stage2_prior.train", *config, "micro_batch=1", *SMALL_PRIOR, folder=tmp_path)


@pytest.mark.parametrize("name", STAGE1)
def test_every_tokenizer_configuration_passes_a_dry_run(name):
    text = dry_run_tokenizer(load_config(Stage1Config, f"configs/stage1/{name}.yaml"))
    assert "GFLOP per image" in text and "bits per token" in text


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("factor", [8, 16])
def test_tokenizers_have_the_grid_that_their_names_say(size, factor):
    config = load_config(Stage1Config, f"configs/stage1/imagenet{size}_f{factor}.yaml")
    assert (config.image_size, config.backbone.factor) == (size, factor)
    assert config.quantizer["name"] == "lgq" and config.quantizer["codebook_size"] == 16384


@pytest.mark.parametrize("codes", [1024, 65536])
def test_another_codebook_size_is_one_setting(codes):
    settings = [f"quantizer.codebook_size={codes}"]
    text = dry_run_tokenizer(load_config(Stage1Config, "configs/stage1/imagenet128_f16.yaml", settings))
    assert f"8x8 tokens of {codes} codes" in text


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four tokens an image, in two scales: what a dry run of any prior needs."""
    path = tmp_path_factory.mktemp("store") / "tokens"
    names = [str(label) for label in range(10)]
    identity = TokenIdentity(
        spec={"sizes": [16], "scales": [[1, 1], [1, 3]], "image_size": [32, 32]},
        tokenizer="nowhere",
        tokenizer_sha256="0" * 64,
        data={"name": "shapes"},
        data_fingerprint="0",
        preprocessing="none",
        mirrored=False,
        shard_images=4,
        class_names=names,
        class_ids=names,
        groups=names,
    )
    writer = TokenStoreWriter(path, identity)
    writer.open()
    tokens = torch.arange(16).view(4, 4, 1)
    for split in SPLITS:
        writer.write(split, 0, tokens, tokens, torch.arange(4), torch.arange(4))
    writer.finish([], [torch.randn(16, 4)])
    return path


@pytest.mark.parametrize("name", STAGE2)
def test_every_prior_configuration_passes_a_dry_run(small_store, name):
    # two layers of the large ones: their 24 take seconds to fill with random weights
    settings = [f"tokens={small_store}", *(["prior.depth=2"] if name.endswith("_l") else [])]
    assert "GFLOP per image" in dry_run_prior(load_config(Stage2Config, f"configs/stage2/{name}.yaml", settings))


@pytest.mark.parametrize(
    ("name", "millions"), [("maskgit_b", 89), ("ar_b", 89), ("var_b", 89), ("maskgit_l", 311), ("ar_l", 311)]
)
def test_priors_have_the_size_that_their_names_say(small_store, name, millions):
    with torch.device("meta"):
        prior = new_prior(load_config(Stage2Config, f"configs/stage2/{name}.yaml"), TokenStore(small_store))
    assert sum(parameter.numel() for parameter in prior.trunk.parameters()) / 1e6 == pytest.approx(millions, abs=2)


def test_missing_vgg_weights_are_one_clear_line(imagenet, commands, tmp_path):
    settings = [*small_tokenizer("imagenet128_f16", imagenet), "loss.perceptual=lpips"]
    failed = commands.run(
        "stage1_tokenizer.train",
        *("--config", "configs/stage1/imagenet128_f16.yaml", *settings),
        environment={"TORCH_HOME": str(tmp_path), "LGQ_VGG16_WEIGHTS": ""},
        folder=tmp_path,
    )
    assert failed.code == 2
    (line,) = failed.error_lines
    assert "vgg16-397923af.pth" in line and "LGQ_VGG16_WEIGHTS" in line and "efficientnet_lite0" in line


def test_a_folder_that_is_not_there_is_one_clear_line(commands, tmp_path):
    failed = commands.run("stage1_tokenizer.train", "--config", "configs/stage1/imagenet256_f16.yaml", folder=tmp_path)
    assert failed.code == 2
    (line,) = failed.error_lines
    assert "data.path: data/imagenet" in line


@pytest.mark.parametrize("name", [*OWN_STAGE1, *OWN_STAGE2])
def test_every_configuration_opens_with_its_command_its_cost_and_its_number(name):
    stage = "stage1" if name in OWN_STAGE1 else "stage2"
    lines = (CONFIGS / stage / f"{name}.yaml").read_text().splitlines()
    comment = "\n".join(line for line in lines if line.startswith("#"))
    assert f"--config configs/{stage}/{name}.yaml" in comment
    assert "Meant for" in comment and "NOT RUN HERE" in comment
    assert "arXiv" in comment or "No published number" in comment
    assert max(map(len, lines)) <= 132


def test_imagenet_by_its_short_name_is_the_folder_source(imagenet):
    config = load_config(Stage1Config, "configs/stage1/demo.yaml", ["data=imagenet", f"data.path={imagenet}"])
    assert config.data == {"name": "folder", "path": str(imagenet)}
    assert len(folder(os.fspath(imagenet)).train) == 2 * CLASSES
