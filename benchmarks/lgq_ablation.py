"""What each repair of LGQ is worth on the built-in images:  python -m benchmarks.lgq_ablation

Trains the demo's tokenizer, shortened, once per variant: LGQ, LGQ with one repair taken back, the published LGQ, and the
other quantizers; same data order, seed, steps and backbone. Writes results/lgq_ablation.json, and goes on if it exists.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.measuring import command_line
from benchmarks.trials import Trial, run_trials
from pipeline.core.command import run_command
from pipeline.core.errors import UserError

CONFIG, OUT = "configs/stage1/demo.yaml", Path("results/lgq_ablation.json")
VARIANTS: dict[str, tuple[str, ...]] = {
    "lgq": ("quantizer=lgq",),
    "absolute temperature": ("quantizer=lgq", "quantizer.relative_temperature=false"),
    "no straight-through share": ("quantizer=lgq", "quantizer.straight_through_weight=0"),
    "joint gradients (published)": ("quantizer=lgq", "quantizer.split_gradients=false"),
    "codes follow by free energy": ("quantizer=lgq", "quantizer.follow=free_energy"),
    "codes follow by nearest": ("quantizer=lgq", "quantizer.follow=nearest"),
    "biased usage term": ("quantizer=lgq", "quantizer.unbiased_usage=false"),
    "no usage, no peak term": ("quantizer=lgq", "quantizer.usage_weight=0", "quantizer.peak_weight=0"),
    "linear schedule": ("quantizer=lgq", "quantizer.schedule=linear"),
    "distinct start, not k-means": ("quantizer=lgq", "quantizer.start=distinct"),
    "no revival": ("quantizer=lgq", "quantizer.revive_below=0"),
    "distinct start, no revival": ("quantizer=lgq", "quantizer.start=distinct", "quantizer.revive_below=0"),
    "lgq_paper": ("quantizer=lgq_paper",),
    "vq": ("quantizer=vq",),
    "vq_ema": ("quantizer=vq_ema",),
    "fsq": ("quantizer=fsq",),
}


def main() -> None:
    """Parse the command line, then train and measure what the result file lacks."""
    parser = command_line("lgq_ablation", __doc__)
    parser.add_argument("--images", type=int, default=8000, help="training images of each variant (default: 8000)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each variant (default: 1)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of one thread each (default: 2)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default: {OUT}")
    arguments = parser.parse_args()
    trials = [Trial(name, changes, seed) for seed in range(arguments.seeds) for name, changes in VARIANTS.items()]
    result = run_trials(trials, CONFIG, arguments.images, arguments.out, arguments.jobs)
    failed = [row["name"] for row in result["rows"] if "error" in row]
    if failed:
        raise UserError(f"{arguments.out}: {', '.join(failed)} failed; the same command tries again")


if __name__ == "__main__":
    run_command(main)
