"""Write the report of a run:  python -m eval.report runs/demo"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.core.command import run_command

EXAMPLES = """examples:
  python -m eval.report runs/demo                              writes runs/demo/report.html
  python -m eval.report runs --out comparison.html             every evaluation below runs/, one after the other

The page is one file: pictures and plots are inside, nothing is loaded from a network. It is made of the result.json files,
pictures and stats.jsonl files below the folder, and of nothing else; run it again whenever they change."""


def main() -> None:
    """Parse the command line, then write the page."""
    parser = argparse.ArgumentParser(
        description="Make one HTML page of the evaluations and training curves below a folder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUNS", help="a folder with results of eval.run below it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: report.html in that folder)")
    parser.add_argument("--dry-run", action="store_true", help="print which results would be shown, then stop")
    arguments = parser.parse_args()

    # imported here so that --help and usage errors answer at once
    from eval.page import gather, render
    from eval.results import find_results
    from pipeline.core.files import write_text

    if arguments.dry_run:
        print("\n".join(f"{path}: {result.part} of {result.name}" for path, result in find_results(arguments.folder).items()))
        return
    out = arguments.out or arguments.folder / "report.html"
    write_text(out, render(gather(arguments.folder)))
    print(f"{out.resolve()}: {out.stat().st_size / 2**20:.1f} MiB, open it in a browser")


if __name__ == "__main__":
    run_command(main)
