"""Making and keeping codebooks: starts from data, k-means, moving averages, revival of dead codes."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.global_batch import from_first_process, gather, global_sum, processes
from stage1_tokenizer.quantizers.nearest import nearest_codes


@torch.no_grad()
def distinct_start(z: Float[Tensor, "n c"], codebook_size: int, seed: int = 0) -> Float[Tensor, "k c"]:
    """Codes drawn from all processes' vectors, no two alike; equal on every process.

    Where there are fewer distinct vectors than codes, the rest lies at random points between pairs of them, with
    a jitter of a thousandth of the spread: never a copy.
    """
    points = torch.unique(gather(z), dim=0)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(points), generator=draw)[:codebook_size].to(z.device)
    codes = points[order]
    missing = codebook_size - len(codes)
    if missing:
        ends = torch.randint(len(points), (2, missing), generator=draw).to(z.device)
        between = torch.rand(missing, 1, generator=draw).to(z)
        spread = (points - points.mean(0)).square().mean().sqrt()
        spread = torch.where(spread > 0, spread, 1)
        jitter = 1e-3 * spread * torch.randn(missing, z.shape[1], generator=draw).to(z)
        codes = torch.cat([codes, points[ends[0]].lerp(points[ends[1]], between) + jitter])
    return from_first_process(codes)


@torch.no_grad()
def kmeans(
    z: Float[Tensor, "n c"], centres: Float[Tensor, "k c"], iterations: int = 10
) -> Float[Tensor, "k c"]:
    """Lloyd's iterations over all processes' vectors from the given centres; a centre without vectors stays.

    They end when no vector changes its centre, or after `DISTANCES`: the first few do most of the work.
    """
    z = gather(z)
    index = z.new_full((len(z),), -1, dtype=torch.int64)
    for _ in range(max(1, min(iterations, DISTANCES // (len(z) * len(centres))))):
        before, index = index, nearest_codes(z, centres)
        if torch.equal(before, index):
            break
        counts, sums = cluster_counts(index, centres[:, 0]), cluster_sums(z, index, centres)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    return from_first_process(centres)


def start_from_data(z: Float[Tensor, "n c"], codebook_size: int, start: str) -> Float[Tensor, "k c"]:
    """A codebook by the named start: "distinct" vectors, or "kmeans" from there."""
    codes = distinct_start(z, codebook_size)
    if start != "kmeans" or len(z) * processes() <= codebook_size:  # then every vector is a code, the best one there is
        return codes
    return kmeans(z, codes)


DISTANCES = 1 << 36  # half a minute on two CPU cores, for short vectors
STARTS = ("distinct", "kmeans")


@torch.no_grad()
def average_shares(shares: Float[Tensor, " k"], new_counts: Float[Tensor, " k"], memory: float) -> Float[Tensor, ""]:
    """Moves the average shares of the codes by what was counted since the last call, in place, and counts anew.

    Gives 1, or 0 where nothing was counted, in which case nothing moves: calls without a forward between them are one.
    """
    counted = new_counts.sum()
    seen = (counted > 0).to(shares)
    shares.lerp_(new_counts / counted.clamp_min(1), (1 - memory) * seen)
    new_counts.zero_()
    return seen


def cluster_counts(index: Int[Tensor, " n"], like: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """How many vectors each code has (without bincount, which makes a GPU wait)."""
    return torch.zeros_like(like).index_add_(0, index, torch.ones_like(index, dtype=like.dtype))


def cluster_sums(
    z: Float[Tensor, "n c"], index: Int[Tensor, " n"], like: Float[Tensor, "k c"]
) -> Float[Tensor, "k c"]:
    """The sum of the vectors of each code."""
    return torch.zeros_like(like).index_add_(0, index, z.detach().to(like.dtype))


def ema_codes(
    counts: Float[Tensor, " k"], sums: Float[Tensor, "k c"], epsilon: float = 1e-5
) -> Float[Tensor, "k c"]:
    """m_k / n_k with Laplace-smoothed counts (VQ-VAE, appendix A.1; Sonnet's code)."""
    total = counts.sum()
    smoothed = (counts + epsilon) / (total + len(counts) * epsilon) * total
    return sums / smoothed[:, None]


class Candidates(nn.Module):
    """Vectors of the last batch that may take the place of dead codes; buffers, equal on every process.

    Of an evenly spaced sample of the global batch, `count` are kept by systematic sampling with weights |z - code|^2
    (the D^2 rule of k-means++, Arthur and Vassilvitskii 2007, without a random number): badly served vectors come first,
    a vector that has a code never comes, and none comes twice.
    """

    vectors: Tensor
    present: Tensor

    def __init__(self, dim: int, count: int = 64) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(count, dim))
        self.register_buffer("present", torch.zeros(count, dtype=torch.bool))

    @torch.no_grad()
    def record(self, z: Float[Tensor, "n c"], codes: Float[Tensor, "n c"]) -> None:
        """Keep candidates among these vectors, which these codes now stand for."""
        count = len(self.vectors)
        errors = (z - codes).square().sum(1, keepdim=True)
        sample = gather(torch.cat([z, errors], 1)[:: evenly(len(z), 8 * count)])
        reach = sample[:, -1].double().cumsum(0)
        levels = (torch.arange(count, device=z.device) + 0.5) / count * reach[-1]
        chosen = torch.searchsorted(reach, levels).clamp_max(len(sample) - 1)
        first = F.pad(chosen[1:] != chosen[:-1], (1, 0), value=True)
        self.vectors.copy_(sample[chosen, :-1])
        self.present.copy_(first & (sample[chosen, -1] > 0))

    @torch.no_grad()
    def take(self, codebook: Float[Tensor, "k c"], dead: Bool[Tensor, " k"]) -> Bool[Tensor, " k"]:
        """Overwrite dead codes, the lowest first, while candidates last; says which, and forgets the candidates."""
        order = (~self.present).to(torch.uint8).argsort(stable=True)  # those present first
        turn = dead.cumsum(0) - 1
        revived = dead & (turn < self.present.sum())
        vectors = self.vectors[order[turn.clamp(0, len(order) - 1)]].to(codebook.dtype)
        codebook.copy_(torch.where(revived[:, None], vectors, codebook))
        self.present.zero_()
        return revived


class Replacement(nn.Module):
    """Moves codes that are hardly used next to used ones, once in a while; buffers, equal on every process.

    After every `every` updates a code with less than `below` of a fair share of the vectors since then takes the place of
    a used one, chosen in proportion to their shares (systematic sampling, without a random number), a thousandth of the
    way back towards where it was, so that no two are alike.
    """

    counts: Tensor
    updates: Tensor
    fresh: Tensor

    def __init__(self, codebook_size: int, every: int, below: float) -> None:
        super().__init__()
        self.every = every
        self.below = below
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("fresh", torch.tensor(False))  # recorded since the last update

    @torch.no_grad()
    def record(self, index: Int[Tensor, " n"]) -> None:
        self.counts += global_sum(cluster_counts(index, self.counts))
        self.fresh.fill_(True)

    @torch.no_grad()
    def update(self, codebook: Float[Tensor, "k c"]) -> None:
        """Between two steps; without a `record` since the last update, nothing."""
        self.updates += self.fresh
        due = self.fresh & (self.updates % self.every == 0)
        self.fresh.fill_(False)
        dead = due & (self.counts < self.below * self.counts.mean())
        reach = torch.where(dead, 0, self.counts).double().cumsum(0)
        level = (dead.cumsum(0) - 0.5) / dead.sum().clamp_min(1) * reach[-1]
        parent = torch.searchsorted(reach, level).clamp_max(len(codebook) - 1)
        codebook.copy_(torch.where(dead[:, None], codebook[parent].lerp(codebook, 1e-3), codebook))
        self.counts.mul_(~due)


def evenly(rows: int, wanted: int) -> int:
    """The stride that leaves about `wanted` of a global batch; 2 processes with half the rows take the same ones."""
    return max(1, rows * processes() // wanted)
