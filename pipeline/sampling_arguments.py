"""What the commands that sample share on their command lines; nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import re
import typing
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.sampler_options import KINDS, every_option

MOST_SEEDS, MOST_ZOOM = 10_000, 128
OPTIONS = every_option()
SHORT = {"guidance_scale": ["--guidance"]}  # flags beside an option's own name


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """What every command that samples asks for: class, seeds, pipeline, and the sampler's options on top of the prior's own."""
    parser.add_argument(
        "--class", dest="query", required=True, metavar="CLASS", help="a number, a name, or a part of a name that several share"
    )
    parser.add_argument("--seeds", type=str, default="0", metavar="SEEDS", help="7, or 0-15, or 1,5,8-11 (default: 0)")
    parser.add_argument("--pipeline", metavar="RUN", help="a prior's run or a saved pipeline (default: the newest below runs/)")
    parser.add_argument("--prior", choices=tuple(KINDS), help="the kind of prior, where --pipeline is not given")
    sampler = parser.add_argument_group(
        "options of the sampler", "What is not given is as the prior brings it (prior.sampling), or else the sampler's default."
    )
    for name, option in OPTIONS.items():
        numbers: dict[str, Any] = {"type": option.kind}
        if typing.get_origin(option.kind) is tuple:
            numbers = {"type": typing.get_args(option.kind)[0], "nargs": len(typing.get_args(option.kind))}
        flags = [*SHORT.get(name, ()), f"--{name.replace('_', '-')}"]
        sampler.add_argument(*flags, dest=name, metavar=option.metavar, help=option.help, **numbers)
    sampler.add_argument(
        "--sampler-defaults", action="store_true", help="forget the options that the prior brings (prior.sampling) for these"
    )
    parser.add_argument("--zoom", type=int, metavar="N", help="enlarge N times (default: to 128 pixels or more)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sampled, then stop")


def sampling_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampler's options among the parsed ones, None where they stay as they are; UserError for a zoom that cannot be."""
    if arguments.zoom is not None and not 1 <= arguments.zoom <= MOST_ZOOM:
        raise UserError(f"--zoom: {arguments.zoom}; give 1 or more, up to {MOST_ZOOM}")
    return {"brought": not arguments.sampler_defaults, **{name: getattr(arguments, name) for name in OPTIONS}}


def seed_list(text: str) -> list[int]:
    """Seeds from "7", "0-15" or "1,5,8-11"."""
    ranges: list[range] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part, re.ASCII)
        if not found:
            raise UserError(f"--seeds: {text!r:.200}; give numbers and ranges such as 7, 0-15 or 1,5,8-11")
        if max(map(len, filter(None, found.groups()))) > 19 or max(int(end or 0) for end in found.groups()) >= 2**63:
            raise UserError(f"--seeds: {text!r:.200}; a seed has 63 bits, give one below {2**63}")
        ranges.append(range(int(found[1]), int(found[2] or found[1]) + 1))
    if sum(map(len, ranges)) > MOST_SEEDS:
        raise UserError(f"--seeds: {text!r:.200} are {sum(map(len, ranges))} seeds; give {MOST_SEEDS} at a time")
    seeds = [seed for some in ranges for seed in some]
    if not seeds:
        raise UserError(f"--seeds: {text!r:.200} holds no seed; a range goes from the smaller to the larger, such as 0-15")
    return seeds


def file_name(text: str) -> str:
    """A text as part of a file name."""
    letters = (letter if letter.isalnum() or letter in "-." else "-" for letter in text.strip()[:80])
    return "".join(letters).strip("-.") or "sample"
