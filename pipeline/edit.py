"""Edit a picture:  python -m pipeline.edit PICTURE --class CLASS --box 8:24,8:24"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from pipeline.core.command import run_command
from pipeline.core.errors import UserError
from pipeline.sampling_arguments import MOST_SEEDS, add_sampling_options, file_name, sampling_options, seed_list

EXAMPLES = """examples:
  python -m pipeline.edit photo.png --class sahara --box 8:24,8:24      fill a hole: rows 8 to 23, columns 8 to 23
  python -m pipeline.edit photo.png --class sahara --mask hole.png      fill where the mask is white
  python -m pipeline.edit photo.png --class sahara --extend 0,0,16,16   16 pixels more on the left and on the right
  python -m pipeline.edit photo.png --class amazon --vary 0.5           half of its tokens anew, as another class
  python -m pipeline.edit photo.png --class amazon --seeds 0-7 --box 8:24,8:24
  python -m pipeline.edit interpolate --class 3 --to 7 --images 9       from class to class: a strip of nine, one row a seed

The picture is cut to the size of the pipeline as training images are. Pixels outside the hole are not changed. The result
is one PNG: the picture (its hole in grey), then one version per seed. The newest MaskGIT edits, which sees what surrounds a
hole on all sides; `--prior ar` sees what comes before it. To interpolate, the newest prior of any kind will do."""


def box(text: str) -> tuple[slice, slice]:
    """Rows and columns from "8:24,0:16"."""
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9}),(\d{1,9}):(\d{1,9})", text.replace(" ", ""))
    if not found:
        raise UserError(f"--box: {text!r:.200}; give rows and columns from:to, such as 8:24,8:24")
    top, bottom, left, right = map(int, found.groups())
    if top >= bottom or left >= right:
        raise UserError(f"--box: {text!r} holds no pixel; give from:to with the smaller number first")
    return slice(top, bottom), slice(left, right)


def margins(text: str) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) from "0,0,16,16"."""
    found = re.fullmatch(r"(\d{1,4}),(\d{1,4}),(\d{1,4}),(\d{1,4})", text.replace(" ", ""))
    if not found or not any(map(int, found.groups())):
        raise UserError(f"--extend: {text!r:.200}; give pixels for top,bottom,left,right such as 0,0,16,16")
    top, bottom, left, right = map(int, found.groups())
    return top, bottom, left, right


def main() -> None:
    """Parse the command line, edit, write one PNG and say where."""
    parser = argparse.ArgumentParser(
        description="Edit a picture.", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="any image file; or the word interpolate, with --to")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--box", metavar="Y:Y,X:X", help="fill these rows and columns")
    what.add_argument("--mask", type=Path, metavar="FILE", help="fill where this picture is brighter than grey")
    what.add_argument("--extend", metavar="T,B,L,R", help="add pixels at the top, bottom, left and right")
    what.add_argument("--vary", type=float, metavar="SHARE", help="sample a share of the tokens anew: 0 keeps all, 1 none")
    what.add_argument("--to", metavar="CLASS", help="with interpolate: the class that the last image is of")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="with interpolate: how many, ends included (8)")
    add_sampling_options(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the PNG to write (default: edits/PICTURE_CLASS_SEEDS.png)")
    arguments = parser.parse_args()
    seeds, options = seed_list(arguments.seeds), sampling_options(arguments)
    hole = None if arguments.box is None else box(arguments.box)
    more = None if arguments.extend is None else margins(arguments.extend)
    interpolating = arguments.to is not None
    if interpolating != (str(arguments.picture) == "interpolate"):
        raise UserError("interpolate: goes with --to; python -m pipeline.edit interpolate --class 3 --to 7")
    if not 2 <= arguments.images <= MOST_SEEDS:
        raise UserError(f"--images: {arguments.images}; give 2 to {MOST_SEEDS}, the two classes are among them")
    if not interpolating and not arguments.picture.is_file():
        raise UserError(f"{arguments.picture}: no such file; give a picture to edit")

    # imported here so that --help and usage errors answer at once
    from pipeline.editing_command import EditRequest, InterpolationRequest, edit_to_file, interpolate_to_file

    ends = (arguments.query, arguments.to) if interpolating else (arguments.picture.stem, arguments.query)
    stem = "_".join(map(file_name, (*ends, arguments.seeds)))
    common: dict[str, Any] = {
        "query": arguments.query,
        "seeds": seeds,
        "pipeline": arguments.pipeline and Path(arguments.pipeline),
        # MaskGIT sees what surrounds a hole on all sides; between classes there is no hole
        "prior": arguments.prior or (None if interpolating else "maskgit"),
        "options": options,
        "out": arguments.out or Path("edits") / f"{stem}.png",
        "zoom": arguments.zoom,
    }
    if interpolating:
        request = InterpolationRequest(**common, to=arguments.to, images=arguments.images)
        interpolate_to_file(request, dry_run=arguments.dry_run)
    else:
        kind = {"box": hole, "mask": arguments.mask, "extend": more, "vary": arguments.vary}
        edit_to_file(EditRequest(**common, picture=arguments.picture, **kind), dry_run=arguments.dry_run)


if __name__ == "__main__":
    run_command(main)
