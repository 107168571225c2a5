"""Write the verdict and the report of a benchmark:  python -m eval.benchmark.report results/benchmark/demo"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.core.command import run_command

EXAMPLES = """examples:
  python -m eval.benchmark.report results/benchmark/demo             report.html, summary.md, rankings.png, verdict.json
  python -m eval.benchmark.report results/benchmark/demo --dry-run   prints the headline and what is missing

Made of the result.json files and pictures below the folder, and of nothing else, whether the benchmark is finished or not.
report.html is one file: pictures and plots are inside, nothing is loaded from a network."""


def main() -> None:
    """Parse the command line, then write the files."""
    parser = argparse.ArgumentParser(
        description="Judge a benchmark by its result files; write the verdict as a page, as Markdown, a picture and JSON.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RESULTS", help="the folder of a benchmark, with jobs/ in it")
    parser.add_argument("--dry-run", action="store_true", help="print the headline and what is missing, then stop")
    arguments = parser.parse_args()

    # imported here so that --help and usage errors answer at once
    from eval.benchmark.collect import collect
    from eval.benchmark.page import gather, headline, picture, render
    from eval.benchmark.summary import summary
    from eval.benchmark.verdict import judge
    from pipeline.core.files import write_bytes, write_json, write_text

    benchmark = collect(arguments.folder)
    verdict = judge(benchmark)
    measured = len(benchmark.tokenizers) + len(benchmark.generations)
    print(f"{benchmark.name}: {headline(verdict)} ({measured} measurements, {len(benchmark.missing)} missing)")
    if arguments.dry_run:
        print("\n".join(f"missing: {name}" for name in benchmark.missing))
        return
    write_json(arguments.folder / "verdict.json", verdict)
    write_text(arguments.folder / "summary.md", summary(verdict))
    rankings = picture(benchmark, verdict)
    if rankings is not None:
        write_bytes(arguments.folder / "rankings.png", rankings)
    page = arguments.folder / "report.html"
    write_text(page, render(gather(benchmark, verdict)))
    print(f"{page.resolve()}: {page.stat().st_size / 2**20:.1f} MiB, open it in a browser")


if __name__ == "__main__":
    run_command(main)
