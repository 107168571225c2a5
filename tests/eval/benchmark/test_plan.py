"""The jobs of a benchmark, and which are wanted given what is there."""

from __future__ import annotations

from collections import Counter

import pytest

from eval.benchmark.config import BenchmarkConfig, Method
from eval.benchmark.plan import all_jobs, blocked_by, descendants, wanted
from pipeline.core.config import load_config
from pipeline.core.errors import UserError

METHODS, BITS, SEEDS, PRIORS = 3, 2, 2, 2


@pytest.fixture
def jobs():
    return all_jobs(
        BenchmarkConfig(
            name="x",
            stage1="",
            stage2={"maskgit": "", "ar": ""},
            eval="",
            quantizers=(Method("lgq"), Method("lgq", label="lgq_half"), Method("fsq")),
            bits=(8.0, 9.5),
            seeds=(0, 1),
            guidance={"maskgit": (1.0,), "ar": (1.0,)},
        )
    )


def test_there_is_one_chain_for_every_method_budget_and_seed_and_a_branch_for_every_prior(jobs):
    chains = METHODS * BITS * SEEDS
    counts = {"tokenizer": chains, "tokens": chains, "quality": chains}
    counts |= {"prior": chains * PRIORS, "generation": chains * PRIORS, "yardstick": 1}
    assert Counter(job.kind for job in jobs.values()) == counts
    assert jobs["generation/lgq_half-9.5b-s1-ar"].needs == ("prior/lgq_half-9.5b-s1-ar", "tokenizer/lgq_half-9.5b-s1")
    assert jobs["prior/fsq-8b-s0-maskgit"].needs == ("tokens/fsq-8b-s0",)
    facts = {"kind": "generation", "method": "lgq", "label": "lgq_half", "bits": 9.5, "seed": 1, "prior": "ar"}
    assert jobs["generation/lgq_half-9.5b-s1-ar"].facts() == facts
    assert jobs["quality/fsq-8b-s0"].facts()["bits"] == 8 and isinstance(jobs["quality/fsq-8b-s0"].facts()["bits"], int)


def test_what_a_job_needs_exists_and_all_methods_have_a_seed_before_the_next_begins(jobs):
    assert all(need in jobs for job in jobs.values() for need in job.needs)
    seeds = [job.seed for job in jobs.values() if job.seed is not None]
    assert seeds == sorted(seeds)


def test_results_make_their_ancestors_unnecessary_unless_another_measurement_needs_them(jobs):
    assert wanted(jobs, set()) == jobs
    leaves = {id for id, job in jobs.items() if job.is_measurement}
    assert wanted(jobs, leaves) == {}
    one = "generation/fsq-8b-s1-ar"
    assert set(wanted(jobs, leaves - {one})) == {one, "prior/fsq-8b-s1-ar", "tokens/fsq-8b-s1", "tokenizer/fsq-8b-s1"}
    # the prior is there already: then only its tokenizer, which decodes, is missing, not the tokens
    assert set(wanted(jobs, (leaves - {one}) | {"prior/fsq-8b-s1-ar"})) == {one, "tokenizer/fsq-8b-s1"}
    assert set(wanted(jobs, leaves - {"quality/fsq-8b-s1"})) == {"quality/fsq-8b-s1", "tokenizer/fsq-8b-s1"}


def test_a_failure_blocks_what_waits_for_it_and_nothing_that_does_not(jobs):
    failed = {"tokens/fsq-8b-s0"}
    blocked = {id for id, job in jobs.items() if blocked_by(jobs, job, failed)}
    assert blocked == {f"{kind}/fsq-8b-s0-{prior}" for kind in ("prior", "generation") for prior in ("maskgit", "ar")}
    assert blocked == {job.id for job in descendants(jobs, "tokens/fsq-8b-s0")}
    finished = {id: job for id, job in jobs.items() if not id.startswith("prior/")}
    # its prior is there: the tokens are not missed
    assert blocked_by(finished, jobs["generation/fsq-8b-s0-ar"], failed) is None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("quantizers=[lgq,lgq]", "lgq is there twice"),
        ("seeds=[0,0]", "0 is there twice"),
        ("bits=[]", "none given"),
        ("guidance.maskgit=[]", "no scales for maskgit"),
        ("guidanc=1", "did you mean guidance"),
        ("quantizers=[{nam: lgq}]", "did you mean name"),
        ("quantizers=[{name: lgq, label: a/b}]", "letters, digits"),
        ("name=a/b", "name of a folder"),
        ("perturbations=[2]", "between 0 and 1"),
        ("guidance=3", "expected names with their values"),
    ],
)
def test_a_wrong_setting_is_answered_with_the_remedy(setting, said):
    with pytest.raises(UserError, match=said):
        load_config(BenchmarkConfig, "configs/benchmark/smoke.yaml", [setting])
