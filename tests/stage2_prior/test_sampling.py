"""What both samplers promise, shown with a distribution whose conditionals are exact and with random logits."""

from __future__ import annotations

import pytest
import torch

from pipeline.core.errors import UserError
from stage2_prior.logits import Logits, TensorLogits
from stage2_prior.orders import ADAPTIVE_ORDERS, PLANNED_ORDERS, REMASKING
from stage2_prior.samplers import sample_autoregressive, sample_maskgit
from stage2_prior.sampling import UNKNOWN, ARSampling, MaskGITSampling
from stage2_prior.schedules import MASK_SCHEDULES

ORDERS = [*ADAPTIVE_ORDERS, *PLANNED_ORDERS]
N = 10_000


def nothing(b, t=4, d=1):
    return torch.full((b, t, d), UNKNOWN)


class RandomLogits:
    """Logits that depend on what is visible, on the sample and on the branch, for d = 2 indices of 7 and 5 values."""

    scales, t, sizes = ((2, 2), (4, 3)), 16, (7, 5)

    def __init__(self, b, dtype=torch.float32):
        generator = torch.Generator().manual_seed(b)
        self.dtype, self.calls = dtype, []
        self.tables = [torch.randn(2, b, self.t, size, generator=generator) for size in self.sizes]

    def __call__(self, tokens, masked, positions, rows, branches):
        self.calls.append((rows.tolist(), branches, positions.shape[1]))
        seen = tokens.masked_fill(masked[..., None], 0).sum((1, 2))
        out = []
        for table in self.tables:
            stacked = torch.cat([table[int(branch), rows] for branch in branches])
            stacked = stacked + (seen.repeat(len(branches))[:, None, None] * stacked).cos()
            index = positions.repeat(len(branches), 1)[..., None].expand(-1, -1, table.shape[-1])
            out.append((3 * stacked.gather(1, index)).to(self.dtype))
        return TensorLogits(out)


@pytest.mark.parametrize("order", ["random", "halton", "entropy", "maxprob"])
def test_value_independent_orders_reproduce_the_joint_distribution(toy, order):
    options = MaskGITSampling(steps=4, order=order, schedule="linear")
    tokens = sample_maskgit(toy.masked_logits, nothing(N), toy.scales, options, range(N)).tokens
    assert toy.total_variation(tokens) < toy.floor(N)


@pytest.mark.parametrize("lookahead", [1, 3, 8])
def test_autoregressive_sampling_reproduces_the_joint_distribution(toy, lookahead, causal):
    tokens = sample_autoregressive(causal(toy.masked_logits), nothing(N), ARSampling(lookahead=lookahead), range(N)).tokens
    assert toy.total_variation(tokens) < toy.floor(N)


class PairedLogits(Logits):
    """The toy's four tokens as two positions of two indices, the second of which is predicted from the first as well."""

    sizes, independent = (3, 3), False  # pyright: ignore[reportAssignmentType]

    def __init__(self, toy, tokens, masked, positions):
        self.toy, self.tokens, self.masked, self.positions = toy, tokens, masked, positions

    def __call__(self, j, places, before):
        row, column, n = places // self.positions.shape[1], self.positions.flatten()[places], torch.arange(len(places))
        tokens, hidden = self.tokens[row].clone(), self.masked[row][..., None].repeat(1, 1, 2)
        tokens[n, column, :j], hidden[n, column, :j] = before, False
        return self.toy.conditionals(tokens.flatten(1), hidden.flatten(1)).view(-1, 2, 2, 3)[n, column, j]


@pytest.mark.parametrize("order", ["random", "halton", "entropy", "maxprob", "ar"])
def test_indices_that_depend_on_each_other_reproduce_the_joint_distribution_too(toy, order, causal):
    def masked_logits(tokens, masked, positions, rows, branches):
        return PairedLogits(toy, tokens, masked, positions)

    if order == "ar":
        tokens = sample_autoregressive(causal(masked_logits), nothing(N, 2, 2), ARSampling(), range(N)).tokens
    else:
        options = MaskGITSampling(steps=2, order=order, schedule="linear")
        tokens = sample_maskgit(masked_logits, nothing(N, 2, 2), ((1, 2),), options, range(N)).tokens
    assert toy.total_variation(tokens.view(N, 4, 1)) < toy.floor(N)


@pytest.mark.parametrize("order", ["random", "halton", "entropy", "maxprob"])
def test_values_drawn_for_the_first_index_do_not_say_what_is_revealed(order):
    """Index 1 is certain after a zero and open after anything else: positions with a zero must not be preferred."""

    class Certain(Logits):
        sizes, independent = (3, 3), False  # pyright: ignore[reportAssignmentType]

        def __call__(self, j, places, before):
            logits = torch.zeros(len(places), 3)
            if j:
                logits[before[:, 0] == 0, 0] = 20.0
            return logits

    def certain(tokens, masked, positions, rows, branches):
        return Certain()

    options = MaskGITSampling(steps=2, order=order)
    tokens = sample_maskgit(certain, nothing(3000, 2, 2), ((1, 2),), options, range(3000)).tokens
    assert tokens[..., 0].eq(0).float().mean().item() == pytest.approx(1 / 3, abs=0.025)  # looking at them: 0.44


def test_confidence_order_is_biased_less_with_more_noise(toy):
    def distance(choice_temperature):
        options = MaskGITSampling(steps=4, choice_temperature=choice_temperature, schedule="linear")
        return toy.total_variation(sample_maskgit(toy.masked_logits, nothing(N), toy.scales, options, range(N)).tokens)

    greedy, noisy, random = distance(0.0), distance(4.5), distance(1e4)
    assert greedy > 5 * toy.floor(N)
    assert noisy < greedy / 2
    assert random < toy.floor(N)  # noise alone decides


def test_a_random_corrector_of_one_token_reaches_the_joint_distribution_from_anywhere(toy):
    """Gibbs sampling: from the product of the marginals, which one step gives, towards the joint distribution."""
    n, distances = 4000, []
    for steps in (0, 4, 30):
        options = MaskGITSampling(steps=1, order="random", corrector_steps=steps, corrector_share=0.25, corrector="random")
        tokens = sample_maskgit(toy.masked_logits, nothing(n), toy.scales, options, range(n)).tokens
        distances.append(toy.total_variation(tokens))
    assert distances[0] > 2 * distances[1] > 2 * toy.floor(n) > 2 * distances[2]


def test_each_step_has_its_own_temperature(causal):
    """Cold at first, so hot in the end that the larger logit counts for nothing."""

    def leaning(positions, n):
        return TensorLogits([torch.tensor([1.0, 0.0]).expand(n, positions, 2)])

    def masked_logits(tokens, masked, positions, rows, branches):
        return leaning(positions.shape[1], len(rows))

    options = {"temperature": 0.0, "final_temperature": 1e4}
    parallel = MaskGITSampling(steps=2, schedule="linear", order="random", **options)  # pyright: ignore[reportArgumentType]
    samples = sample_maskgit(masked_logits, nothing(1000), ((2, 2),), parallel, range(1000), trace=True)
    first, last = samples.trace[0] >= 0, samples.trace[0] < 0
    assert samples.tokens[first].eq(0).all()
    assert samples.tokens[last].float().mean().item() == pytest.approx(0.5, abs=0.05)
    serial = sample_autoregressive(causal(masked_logits), nothing(1000), ARSampling(**options), range(1000)).tokens  # pyright: ignore[reportArgumentType]
    assert serial[:, 0].eq(0).all() and serial[:, 3].float().mean().item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_a_corrector_masks_its_share_of_the_sampled_tokens_and_draws_them_anew(order):
    logits, given = RandomLogits(3), nothing(3, 16, 2)
    given[1, :6] = 1
    given[2] = 1
    base = {"steps": 4, "order": order}
    before = sample_maskgit(logits, given, logits.scales, MaskGITSampling(**base), range(3), trace=True)
    for corrector in REMASKING:
        logits.calls.clear()
        options = MaskGITSampling(**base, corrector_steps=3, corrector_share=0.25, corrector=corrector)
        samples = sample_maskgit(logits, given, logits.scales, options, range(3), trace=True)
        assert len(samples.trace) == 7 and samples.trace[3].equal(before.tokens)
        assert {rows == [0, 1] for rows, _, _ in logits.calls} == {True}
        changed = torch.stack([(a != b).any(-1).sum(1) for a, b in zip(samples.trace[3:], samples.trace[4:], strict=False)])
        assert (changed <= torch.tensor([4, 2, 0])).all() and changed[:, 0].sum() > 0  # a quarter of 16 and of 10
        assert samples.tokens[1, :6].eq(1).all() and (samples.tokens >= 0).all()


def test_the_confident_corrector_redraws_what_was_least_likely():
    class Peaked(Logits):
        """Position i has its most likely value with odds that grow with i; everything is drawn alike at first."""

        sizes, independent, asked = (2,), True, []  # pyright: ignore[reportAssignmentType]

        def __init__(self, positions):
            self.positions = positions
            self.asked.append(positions.sort(dim=1).values)

        def __call__(self, j, places, before):
            margin = self.positions.flatten()[places].float()
            return torch.stack([margin, torch.zeros_like(margin)], dim=1)

    def peaked(tokens, masked, positions, rows, branches):
        return Peaked(positions)

    options = MaskGITSampling(steps=1, temperature=0.0, corrector_steps=2, corrector_share=0.25, corrector="confidence")
    sample_maskgit(peaked, nothing(2, 8), ((2, 4),), options, range(2))
    assert [asked.tolist() for asked in Peaked.asked[1:]] == [[[0, 1], [0, 1]]] * 2


@pytest.mark.parametrize("order", ORDERS)
def test_one_step_draws_from_the_product_of_the_marginals(toy, order):
    options = MaskGITSampling(steps=1, order=order)
    tokens = sample_maskgit(toy.masked_logits, nothing(N), toy.scales, options, range(N)).tokens
    marginals = toy.conditionals(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))[0].exp()
    toy.probabilities = marginals[torch.arange(4), toy.states].prod(1)
    assert toy.total_variation(tokens) < toy.floor(N)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_given_tokens_never_change_and_every_hole_is_filled(order, dtype, causal):
    b, generator = 6, torch.Generator().manual_seed(0)
    logits = RandomLogits(b, dtype)
    full = torch.stack([torch.randint(size, (b, 16), generator=generator) for size in logits.sizes], dim=-1)
    hole = torch.rand(b, 16, generator=generator) < torch.linspace(0, 1, b)[:, None]  # the first empty, the last full
    hole[0], hole[-1] = False, True
    given = torch.where(hole[..., None], UNKNOWN, full)
    before, state = given.clone(), torch.get_rng_state()
    options = MaskGITSampling(
        steps=5,
        order=order,
        choice_temperature=20.0,
        guidance_scale=3.0,
        guidance_schedule="linear",
        final_temperature=0.0,
        corrector_steps=2,
        corrector_share=0.6,
    )
    samples = sample_maskgit(logits, given, logits.scales, options, range(b), trace=True)
    assert given.equal(before) and torch.get_rng_state().equal(state)
    for grid in [*samples.trace, samples.tokens]:
        assert grid[~hole].equal(full[~hole])
    assert (samples.tokens >= 0).all() and (samples.tokens < torch.tensor(logits.sizes)).all()
    assert all(0 not in rows for rows, _, _ in logits.calls)  # nothing to do for the complete sample
    samples = sample_autoregressive(causal(logits), given, ARSampling(guidance_scale=3.0), range(b))
    assert samples.tokens[~hole].equal(full[~hole]) and (samples.tokens >= 0).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_counts_fall_to_zero_and_more_steps_than_tokens_change_nothing(order, schedule):
    logits = RandomLogits(3)
    given = nothing(3, 16, 2)
    given[1, :9] = 1

    def run(steps):
        options = MaskGITSampling(steps=steps, order=order, schedule=schedule)
        return sample_maskgit(logits, given, logits.scales, options, range(3), trace=True)

    left = torch.stack([(grid < 0).any(-1).sum(1) for grid in run(16).trace])
    assert left[:, 0].tolist() == list(range(15, -1, -1)) and left[:7, 1].tolist() == list(range(6, -1, -1))
    for steps in (17, 100):
        assert run(steps).tokens.equal(run(16).tokens)
    left = torch.stack([(grid < 0).any(-1).sum(1) for grid in run(5).trace])
    assert (left[:, 0].diff() < 0).all() and left[-1].eq(0).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("corrector", REMASKING)
def test_an_image_is_the_same_alone_and_in_a_batch(order, corrector):
    logits = RandomLogits(8)
    options = MaskGITSampling(
        steps=6,
        order=order,
        guidance_scale=2.0,
        guidance_schedule="linear",
        temperature=1.3,
        final_temperature=0.5,
        corrector_steps=2,
        corrector_share=0.3,
        corrector=corrector,
    )
    given = nothing(8, 16, 2)
    given[2, 3:9] = 2
    together = sample_maskgit(logits, given, logits.scales, options, range(8)).tokens
    for i in range(8):

        def alone(tokens, masked, positions, rows, branches, i=i):
            return logits(tokens, masked, positions, rows + i, branches)

        assert sample_maskgit(alone, given[i : i + 1], logits.scales, options, [i]).tokens.equal(together[i : i + 1])
    assert not sample_maskgit(logits, given, logits.scales, options, range(1, 9)).tokens.equal(together)


def test_guidance_one_is_conditional_zero_unconditional_each_in_one_pass(causal):
    def run(scale, tables=None):
        logits = RandomLogits(4)
        if tables is not None:
            logits.tables = [tables(*table) for table in logits.tables]
        options = MaskGITSampling(steps=4, guidance_scale=scale)
        ar = ARSampling(guidance_scale=scale)
        tokens = sample_maskgit(logits, nothing(4, 16, 2), logits.scales, options, range(4)).tokens
        tokens = torch.cat([tokens, sample_autoregressive(causal(logits), nothing(4, 16, 2), ar, range(4)).tokens])
        return tokens, {branches for _, branches, _ in logits.calls}

    conditional = run(1.0, lambda unconditional, conditional: torch.stack([conditional, conditional]))
    unconditional = run(1.0, lambda unconditional, conditional: torch.stack([unconditional, unconditional]))
    assert run(1.0)[0].equal(conditional[0]) and run(1.0)[1] == {(True,)}
    assert run(0.0)[0].equal(unconditional[0]) and run(0.0)[1] == {(False,)}
    assert run(3.0)[1] == {(True, False)} and not run(3.0)[0].equal(conditional[0])


def test_guidance_extrapolates_from_unconditional_to_conditional(toy):
    def both(tokens, masked, positions, rows, branches):
        n = len(rows)
        conditional, unconditional = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.0, 1.0, 0.25])
        guided = {True: conditional, False: unconditional}
        stacked = torch.stack([guided[branch] for branch in branches]).repeat_interleave(n, 0)
        return TensorLogits([stacked[:, None].expand(-1, 4, 3)])

    n, scale = 5000, 2.5
    options = MaskGITSampling(steps=1, order="random", guidance_scale=scale)
    tokens = sample_maskgit(both, nothing(n), toy.scales, options, range(n)).tokens
    w = scale - 1  # the papers' (1 + w) conditional - w unconditional
    expected = ((1 + w) * torch.tensor([1.0, 0.0, 0.5]) - w * torch.tensor([0.0, 1.0, 0.25])).softmax(0)
    assert (tokens.flatten().bincount(minlength=3) / (4 * n) - expected).abs().max() < 0.01


@pytest.mark.parametrize("order", ORDERS)
def test_a_constant_added_to_the_logits_of_a_position_changes_nothing(order):
    logits, offsets = RandomLogits(4), 8.0 * torch.arange(16)

    def shifted(tokens, masked, positions, rows, branches):
        added = offsets[positions].repeat(len(branches), 1)[..., None]
        return TensorLogits([each + added for each in logits(tokens, masked, positions, rows, branches).tensors])

    options = MaskGITSampling(steps=5, order=order, guidance_scale=2.0, choice_temperature=1.0)
    plain = sample_maskgit(logits, nothing(4, 16, 2), logits.scales, options, range(4)).tokens
    assert sample_maskgit(shifted, nothing(4, 16, 2), logits.scales, options, range(4)).tokens.equal(plain)


def test_planned_orders_ask_for_logits_only_where_they_reveal():
    logits = RandomLogits(2)
    sample_maskgit(logits, nothing(2, 16, 2), logits.scales, MaskGITSampling(steps=4, order="halton"), range(2))
    assert sum(positions for _, _, positions in logits.calls) == 16


def test_the_indices_of_a_position_are_drawn_independently(causal):
    def uniform(tokens, masked, positions, rows, branches):
        return TensorLogits([torch.zeros(*positions.shape, 3), torch.zeros(*positions.shape, 3)])

    parallel = sample_maskgit(uniform, nothing(2000, 4, 2), ((2, 2),), MaskGITSampling(steps=2), range(2000)).tokens
    serial = sample_autoregressive(causal(uniform), nothing(2000, 4, 2), ARSampling(), range(2000)).tokens
    for tokens in (parallel, serial):
        shares = (3 * tokens[..., 0] + tokens[..., 1]).flatten().bincount(minlength=9) / 8000
        assert (shares - 1 / 9).abs().max() < 0.015


@pytest.mark.parametrize("kind", [MaskGITSampling, ARSampling])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"final_temperature": -0.1},
        {"guidance_scale": -0.5},
        {"guidance_schedule": "consant"},
        {"guidance_interval": (0.7, 0.2)},
        {"guidance_power": 0.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_bad_options_are_refused_in_one_line(kind, options):
    with pytest.raises(UserError, match=next(iter(options))) as caught:
        kind(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"order": "hilton"},
        {"schedule": "acos"},
        {"choice_temperature": -1.0},
        {"corrector_steps": -1},
        {"corrector_share": 0.0},
        {"corrector": "confidense"},
    ],
)
def test_bad_maskgit_options_are_refused_in_one_line(options):
    with pytest.raises(UserError, match=next(iter(options))):
        MaskGITSampling(**options)
