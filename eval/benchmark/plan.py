"""The jobs of a benchmark, what each needs, and which are wanted given what is there.

tokenizer/<method>-<bits>b-s<seed>            train stage 1
tokens/<same>              <- tokenizer       encode the data
quality/<same>             <- tokenizer       measure (a leaf: its result.json is what the report reads)
prior/<same>-<prior>       <- tokens          train stage 2
generation/<same>-<prior>  <- prior, tokenizer  measure (a leaf)
yardstick                  <- a tokenizer     measure real images and spoilt copies of them (a leaf)
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eval.benchmark.config import BenchmarkConfig, Method

Kind = Literal["yardstick", "tokenizer", "tokens", "quality", "prior", "generation"]
KINDS: tuple[Kind, ...] = ("yardstick", "tokenizer", "tokens", "quality", "prior", "generation")
CONTRACT = "contract.json"  # beside the results: what all runs into a folder agreed on
MEASUREMENTS: tuple[Kind, ...] = ("yardstick", "quality", "generation")
# of the code that measures: raise one when the same inputs would give other numbers, and what it measured is measured again
VERSIONS: dict[Kind, int] = {"yardstick": 2, "quality": 2, "generation": 2}


@dataclass(frozen=True)
class PlannedJob:
    """One step of the benchmark, done by one process: `needs` are the ids of the jobs whose artifacts it reads."""

    id: str
    kind: Kind
    needs: tuple[str, ...] = ()
    method: Method | None = None
    bits: float | None = None
    seed: int | None = None
    prior: str | None = None

    @property
    def is_measurement(self) -> bool:
        """Whether it leaves a result file, rather than an artifact that others need."""
        return self.kind in MEASUREMENTS

    @property
    def family(self) -> str:
        """What jobs of about the same cost share: the kind, and the prior where there is one."""
        return f"{self.kind}/{self.prior}" if self.prior else self.kind

    def facts(self) -> dict[str, Any]:
        """What result files are found by: plain values, None where a job has none."""
        whole = self.bits is not None and float(self.bits).is_integer()
        return {
            "kind": self.kind,
            "method": self.method and self.method.name,
            "label": self.method and self.method.label,
            "bits": int(self.bits) if self.bits is not None and whole else self.bits,
            "seed": self.seed,
            "prior": self.prior,
        }


def all_jobs(config: BenchmarkConfig) -> dict[str, PlannedJob]:
    """Every job by its id, the most urgent first.

    One seed after the other, so that a benchmark which is stopped early compares all methods; within a training's
    descendants the latest first, so that what was begun is measured before more is begun.
    """
    jobs: list[PlannedJob] = []
    for seed in config.seeds:
        for bits in config.bits:
            for method in config.quantizers:
                jobs += _chain(config, method, bits, seed)
    first = next(job for job in jobs if job.kind == "tokenizer")
    jobs.insert(0, PlannedJob("yardstick", "yardstick", (first.id,)))
    return {job.id: job for job in jobs}


def _chain(config: BenchmarkConfig, method: Method, bits: float, seed: int) -> list[PlannedJob]:
    def job(kind: Kind, *needs: str, prior: str | None = None) -> PlannedJob:
        end = f"{name}-{prior}" if prior else name
        return PlannedJob(f"{kind}/{end}", kind, needs, method, bits, seed, prior)

    name = f"{method.label}-{bits:g}b-s{seed}"
    generation = [job("generation", f"prior/{name}-{prior}", f"tokenizer/{name}", prior=prior) for prior in config.stage2]
    priors = [job("prior", f"tokens/{name}", prior=prior) for prior in config.stage2]
    others = [job("quality", f"tokenizer/{name}"), job("tokens", f"tokenizer/{name}"), job("tokenizer")]
    return [*generation, *priors, *others]


def wanted(jobs: Mapping[str, PlannedJob], done: Container[str]) -> dict[str, PlannedJob]:
    """The measurements that are not done, and what they need that is not done, in the jobs' order."""
    needed: set[str] = set()

    def want(job: PlannedJob) -> None:
        if job.id not in done and job.id not in needed:
            needed.add(job.id)
            for need in job.needs:
                want(jobs[need])

    for job in jobs.values():
        if job.is_measurement:
            want(job)
    return {job.id: job for job in jobs.values() if job.id in needed}


def descendants(jobs: Mapping[str, PlannedJob], ancestor: str) -> list[PlannedJob]:
    """The jobs that need this one, directly or through others."""
    direct = [job for job in jobs.values() if ancestor in job.needs]
    return direct + [deeper for job in direct for deeper in descendants(jobs, job.id)]


def blocked_by(needed: Mapping[str, PlannedJob], job: PlannedJob, failed: Container[str]) -> str | None:
    """The id of a failed job that this one waits for, directly or through others; None where there is none."""
    for need in job.needs:
        if need not in needed:
            continue
        culprit = need if need in failed else blocked_by(needed, needed[need], failed)
        if culprit is not None:
            return culprit
    return None
