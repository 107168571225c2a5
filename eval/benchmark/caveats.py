"""What a benchmark cannot say, derived from what its result files say of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LITERATURE = 50_000  # samples that published distances stand on
SIZE = 256  # pixels of the images that published tokenizers are compared on
SEEDS = 5  # from so many on, the noise of a training is known well
FID = "Inception-v3"  # the one network whose distance is called FID
SLACK = 0.01  # relative; bits per image that differ by more are not the same budget


def caveats(facts: Mapping[str, Any]) -> list[str]:
    """Sentences, the ones that limit most first; each is there only because a fact asks for it."""
    found = []
    extractor = facts["extractor"] or {}
    if extractor.get("name") != FID:
        found.append(
            f"The distances are of {extractor.get('name')}'s features: they are not FID, and no number here may be "
            "set beside one from the literature."
        )
    size = facts["image_size"]
    if size and size < SIZE:
        found.append(
            f"The images have {size}\u00d7{size} pixels. What is best there need not be best at {SIZE} pixels and more."
        )
    samples = facts["samples"]
    if samples and samples < LITERATURE:
        found.append(
            f"Each gFD stands on {samples:,} samples and {facts['reference_images']:,} reference images. A distance of few "
            f"images is too high for all methods; published ones stand on {LITERATURE:,}."
        )
    if facts["training_images"]:
        found.append(
            f"No tokenizer saw more than {facts['training_images']:,} images. Methods that learn slowly and end well are at a "
            "disadvantage."
        )
    if len(facts["seeds"]) < SEEDS:
        found.append(_of_seeds(len(facts["seeds"])))
    if facts["judge_is_loss"]:
        found.append(
            "The network of the perceptual distance is the one whose features the distances use, so a tokenizer trained on "
            "it is flattered by both; this holds for every method alike."
        )
    if facts.get("worse_than_blurred"):
        found.insert(
            0,
            f"The samples of {facts['worse_than_blurred']} of {facts['generations']} priors are farther from real images than "
            "a blurred copy of real images is: what is ranked here is the beginning of a training.",
        )
    if not facts["tuning_trials"]:
        found.append(
            "The benchmark tuned no method: each ran with its shipped settings, so a method whose defaults suit this size has "
            "an advantage. Some defaults, LGQ's more than the others', were chosen by this project in trials on its built-in "
            "images, by the validation images that judge here too (results/LOG.md): a benchmark on them favours LGQ. Where the "
            "data have images that no trial saw, reconstructions of these are measured too (\u201cunseen images\u201d): other "
            "places, mostly northern ones, and no samples."
        )
    if facts["guidance_at_end"]:
        found.append(
            f"For {facts['guidance_at_end']} of {facts['generations']} priors the strongest guidance tried was the best: a "
            "stronger one may be better still."
        )
    found += _of_bits(facts["nominal_bits_per_image"])
    if facts["missing"]:
        found.append(
            f"{len(facts['missing'])} measurements of the plan are missing; a method that lacks seeds or budgets is compared "
            "on those it has."
        )
    for what, name in (("code_versions", "versions of the code"), ("devices", "kinds of machine")):
        if len(facts[what]) > 1:
            found.append(f"The results come from {len(facts[what])} {name} ({', '.join(facts[what])}).")
    return found


def _of_seeds(seeds: int) -> str:
    if seeds == 1:
        return "Every training was run once: the noise between trainings is unknown, and no difference is called significant."
    return (
        f"Every training was run with {seeds} seeds: enough for large differences only, and a method that fails now and then "
        "can look better or worse than it is."
    )


def _of_bits(nominal: Mapping[str, Mapping[str, float]]) -> list[str]:
    found = []
    for bits, methods in nominal.items():
        usual = sorted(methods.values())[len(methods) // 2]
        other = [f"{label} {value:.0f}" for label, value in methods.items() if abs(value / usual - 1) > SLACK]
        if other:
            found.append(
                f"At {bits} bits, not every method spends the {usual:.0f} bits per image of the others: {', '.join(other)}."
            )
    return found
