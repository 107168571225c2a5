"""Result files of a benchmark that was never run: simulated methods whose true order and noise are known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.pictures import blur, save_sheet
from eval.results import Metric, Result, write_result

LITE0 = {"name": "EfficientNet-Lite0", "sha256": "5793" * 16, "resize": "bilinear with antialiasing to 96 px"}
VERSIONS = {"packages": {"torch": "2.14.1"}, "python": "3.11.1", "platform": "Linux", "device": "CPU", "code": "abc"}
FEATURES = "(EfficientNet-Lite0)"
# label: quantizer, true gFD at 10 bits, true rFD, share of codes used
METHODS = {
    "lgq": ("lgq", 180.0, 90.0, 0.48),
    "simvq": ("simvq", 184.0, 96.0, 0.96),
    "fsq": ("fsq", 186.0, 104.0, 0.97),
    "vq_ema": ("vq_ema", 200.0, 100.0, 0.70),
    "ibq": ("ibq", 201.0, 110.0, 0.88),
    "lfq": ("lfq", 225.0, 125.0, 0.93),
    "bsq": ("bsq", 228.0, 122.0, 0.91),
    "half_codes": ("vq", 250.0, 140.0, 0.30),
}
FEW = {
    "lgq": ("lgq", 170.0, 90.0, 0.48),
    "fsq": ("fsq", 186.0, 104.0, 0.97),
    "simvq": ("simvq", 200.0, 96.0, 0.96),
    "half_codes": ("vq", 250.0, 140.0, 0.30),
}
TILE = 32


@pytest.fixture(scope="session")
def all_methods():
    """Eight methods, some of them near each other: label -> quantizer, true gFD at 10 bits, true rFD, share of codes used."""
    return METHODS


@pytest.fixture(scope="session")
def few_methods():
    """Four methods, far from each other."""
    return FEW


def contract(methods, bits, seeds, priors):
    rows = [
        {
            "label": label, "quantizer": {"name": methods[label][0]}, "given": {}, "normalised_latents": False,
            "wanted_bits": 64.0 * b, "bits_per_image": 64.0 * b, "tokens": f"64 tokens of {b} bits", "exact": True,
            "encoder": 800_000, "quantizer_parameters": 8192 if label != "fsq" else 0, "decoder": 900_000,
        }
        for b in bits
        for label in methods
    ]
    return {
        "name": "synthetic", "seeds": list(seeds), "tuning_trials": 0, "rows": rows, "violations": [],
        "measurements": ["yardstick", *sorted(
            f"{kind}/{label}-{b}b-s{s}{end}" for label in methods for b in bits for s in seeds
            for kind, end in [("quality", ""), *(("generation", f"-{prior}") for prior in priors)])],
        "stage1": {"image_size": 32, "backbone.factor": 4, "batch_size": 64, "images": 40000, "optim.lr": 0.0015},
        "stage2": {prior: {"batch_size": 64, "images": 60000} for prior in priors},
        "evaluation": {"images": 2048, "curve_images": 1024, "guidance": {prior: [1, 2, 3] for prior in priors}},
    }  # fmt: skip


@pytest.fixture(scope="session")
def write_benchmark(crops):
    """Write the folder of a benchmark: `noise` is the standard deviation of a training, `error` that of its images."""

    def write(folder, methods=METHODS, bits=(8, 10), seeds=(0, 1, 2), priors=("ar", "maskgit"), noise=1.5, error=0.8, seed=0,
              pictures=True):
        rng = np.random.default_rng(seed)
        shared_blocks = rng.normal(0, error, 20)  # images that all reconstruct badly
        shared = {s: rng.normal(0, 4) for s in seeds}  # what all runs of a seed have in common
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "contract.json").write_text(json.dumps(contract(methods, bits, seeds, priors)))

        def result(where, name, part, metrics, job, details=None, sheets=None, **more):
            place = folder / "jobs" / where
            names = {}
            for kind, (tiles, columns) in (sheets if pictures and sheets else {}).items():
                save_sheet(place / f"{kind}.png", tiles, columns)
                names[kind] = f"{kind}.png"
            inputs = {"version": 1, "data_fingerprint": "f00d", "extractor": LITE0, "config": {"images": 2048, "seed": 0}}
            inputs |= {"job": job} if job else {}
            reference = {"id": "train0" if part != "tokenizer" else "valid0", "n": 4096, "image_size": 32, "split": "train"}
            write_result(place, Result(name, part, metrics, LITE0, reference, inputs | more, VERSIONS, ["measure.py", where],
                                       "2026-01-01T10:00:00+00:00", 31.5, details or {}, names))  # fmt: skip

        real = {
            "real_fd": Metric(f"FD {FEATURES}", 60.0, 2048, "lower", 0.7),
            "real_is": Metric(f"IS {FEATURES}", 24.0, 2048, "higher", 0.3),
            "validation_fd": Metric(f"FD {FEATURES}", 75.0, 2048, "lower", 0.8),
            "blurred_fd": Metric(f"FD {FEATURES}", 236.0, 2048, "lower", 0.9),
        }
        result("yardstick", "yardstick", "yardstick", real, None)
        for number, (label, (method, generated, reconstructed, used)) in enumerate(methods.items()):
            for b in bits:
                for s in seeds:
                    job = {"kind": "quality", "method": method, "label": label, "bits": b, "seed": s, "prior": None}
                    name = f"{label}-{b}b-s{s}"
                    sigma = 0.3 + 0.12 * number
                    lift = 15.0 * (bits[-1] - b)
                    run = rng.normal(0, noise)
                    at = generated + lift + shared[s] + run
                    occur = min(1.0, used * (1 + rng.normal(0, 0.01)))
                    rebuilt = reconstructed + lift + shared[s] / 2 + rng.normal(0, noise / 3)
                    metrics = _tokenizer(rng, rebuilt, at, occur, b, error)
                    blocks = shared_blocks + rng.normal(0, error / 4, 20)
                    metrics["fd"] = replace(metrics["fd"], without_block=tuple(metrics["fd"].value + blocks / 19**0.5))
                    sheets = {"originals": (crops[:16], 8), "reconstructions": (blur(crops[:16], sigma), 8)}
                    hashes = {"tokenizer_sha256": f"{number}{b}{s}" * 12, "perturbations": [0.05, 0.1, 0.2, 0.4]}
                    result(f"quality/{name}", name, "tokenizer", metrics, job, _inside(rng, occur, b, number), sheets, **hashes)
                    for p, prior in enumerate(priors):
                        own = at - 8 * p + rng.normal(0, noise / 2)
                        tiles = blur(crops[16 * p + 8 : 16 * p + 32], sigma + 0.3)
                        near = torch.cat([tiles[:8], crops[16 * p + 40 : 16 * p + 48]])
                        sheets = {"samples": (tiles, 8), "nearest": (near, 8)}
                        facts = {**job, "kind": "generation", "prior": prior}
                        hashes = {"prior_sha256": f"{number}{b}{s}{p}" * 12, "sampling": {"steps": 8 + p},
                                  "guidance": [1, 2, 3], "curve_images": 1024}
                        metrics = _generation(rng, own, b, error)
                        where, details = f"generation/{name}-{prior}", _curve(rng, own, error)
                        result(where, name, "generation", metrics, facts, details, sheets, **hashes)
        return folder

    return write


def _tokenizer(rng, rfd, gfd, used, bits, error):
    tokens = 64 * 2048
    entropy = bits + math.log2(used) - 0.4
    return {
        "fd": Metric(f"rFD {FEATURES}", rfd, 2048, "lower", error, 0.0),
        "psnr": Metric("PSNR", 27 - rfd / 40 + rng.normal(0, 0.4), 2048, "higher", 0.07, None, "dB"),
        "ssim": Metric("SSIM", 0.9 - rfd / 900, 2048, "higher", 0.002, 1.0),
        "perceptual": Metric(f"Perceptual distance {FEATURES}", 0.4 + rfd / 200, 2048, "lower", 0.01, 0.0),
        "codes_used": Metric("Codes used", used, tokens, "neither"),
        "perplexity": Metric("Code perplexity", 2**entropy, tokens, "neither"),
        "bits_per_token": Metric("Bits per token (entropy)", entropy, tokens, "neither", unit="bits"),
        "nominal_bits_per_image": Metric("Bits per image (nominal)", 64.0 * bits, tokens, "neither", unit="bits"),
        "decoded_fd": Metric(f"Decoded FD {FEATURES}", rfd + 25, 2048, "lower", error, 60.0),
        "pfd": Metric(f"pFD {FEATURES}", gfd - 60 + rng.normal(0, 2), 2048, "lower", error),
        "fd_infinity": Metric(f"rFD, limit {FEATURES}", rfd - 12, 2048, "lower", 1.5 * error),
    }


def _generation(rng, gfd, bits, error):
    return {
        "fd": Metric(f"gFD {FEATURES}", gfd + rng.normal(0, error), 2048, "lower", error, 60.0),
        "kid": Metric(f"KID {FEATURES}", gfd / 900 - 0.04, 2048, "lower", 0.003, 0.001),
        "is": Metric(f"IS {FEATURES}", 26 - gfd / 20, 2048, "higher", 0.3, 24.0),
        "precision": Metric(f"Precision {FEATURES}", 0.9 - gfd / 500, 2048, "higher", 0.009, 0.8),
        "recall": Metric(f"Recall {FEATURES}", 0.8 - gfd / 400, 2048, "higher", None, 0.8),
        "prior_bits": Metric("Prior bits per token", bits - 1.2 + gfd / 400, 2048, "neither", 0.02, unit="bits"),
        "prior_bits_per_image": Metric("Prior bits per image", 64 * (bits - 1.2) + gfd / 6, 2048, "neither", 1.3, unit="bits"),
        "memorised": Metric("Memorised", 0.051 + rng.normal(0, 0.004), 2048, "lower", 0.008, 0.05),
    }


def _inside(rng, used, bits, number):
    size = 2**bits
    active = int(used * size)
    weights = 1 / (np.arange(active) + 20 + 3 * number) ** (0.4 + 0.08 * number)
    codes = rng.normal(0, 1, (min(active, 300), 2))
    density = rng.normal(0, 1, 200)
    table = number not in (2, 5, 6)  # FSQ and its like have no codebook
    return {
        "usage": {"size": size, "active": active, "rank": list(range(active)),
                  "count": np.maximum(1, 131072 * weights / weights.sum()).astype(int).tolist()},
        "shown": {"tile": [TILE, TILE], "count": 16},
        "pfd": [{"share": share, "fd": 90 + 15 * number + 300 * share * (1 + number % 3), "standard_error": 1.0}
                for share in (0.0, 0.05, 0.1, 0.2, 0.4)],
        "cost": {"parameters": 1_600_000 + 9000 * number, "quantizer_parameters": 8192, "flops_per_image": 1.4e8,
                 "train_seconds": 300.0 + 12 * number, "ms_per_step": 61.0, "peak_mb": None},
        "geometry": {"latents": rng.normal(0, 1, (400, 2)).round(3).tolist(), "codes": codes.round(3).tolist(),
                     "count": rng.geometric(0.02, len(codes)).tolist(), "note": ""} if table else None,
        "gersho": {"log_density": density.tolist(), "log_volume": (-0.6 * density + rng.normal(0, 0.4, 200)).tolist(),
                   "slope": -0.6, "expected_slope": -0.67} if table else None,
        "training": [{"images": 1280 * (t + 1), "loss": 1 + (2 + number) / (1 + t),
                      **({"temperature": 1 / (1 + t), "purity": 1 - 1 / (2 + t)} if not number else {})} for t in range(31)],
    }  # fmt: skip


def _curve(rng, gfd, error):
    scales = (1.0, 2.0, 3.0)
    return {
        "curve": [{"guidance": g, "fd": gfd + 12 * (g - 2) ** 2 + rng.normal(0, error), "standard_error": error,
                   "is": 10 + 2 * g, "precision": 0.4 + 0.1 * g, "recall": 0.5 - 0.05 * g} for g in scales],
        "chosen": 2.0,
        "cost": {"parameters": 1_100_000, "train_seconds": 400.0, "images_per_second": 40.5},
        "samples": {"tile": [TILE, TILE], "rows": {name: ["a"] * 8 for name in ("desert", "forest", "ice")}},
        "nearest": {"tile": [TILE, TILE], "count": 8},
    }  # fmt: skip
