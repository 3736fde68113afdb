"""Exact nearest neighbours by brute force: float32 matrix products find candidates, float64 decides.

Why the result is exact. Write u = 2^-24, c for any fixed centre, and n for the norm of a point minus c. For
a query q and a support point s, the matrix product computes a = |s - c|^2 - 2 (q - c).(s - c) in float32,
which up to rounding is |q - s|^2 - |q - c|^2. A sum of F + 1 products in any order is off by at most
gamma = (F + 2) u / (1 - (F + 2) u) times the sum of their sizes (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1), here at most (n_q + n_s)^2; rounding q - c, s - c and |s - c|^2 to float32 adds at
most 4 u (n_q + n_s)^2. So |a - (|q - s|^2 - |q - c|^2)| <= e = (gamma + 5 u) (n_q + max n_s)^2.

Let t be the k-th smallest a. At least k points are within t + e, and every point with a > t + 2 e is beyond
it. All others are candidates, measured in float64; they are fetched in growing numbers until one beyond has
been seen. Likewise a point with a + 2 e below the k + 1-th smallest a is surely a neighbour.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from seal_ray.errors import ConfigError

UNIT = 2.0**-24
SPARE = 16
"""Candidates fetched beyond k at first; more only for rows where these are not provably enough."""
BLOCK = 2**22
"""Numbers of the distance matrix held at a time (16 MiB) unless `chunk` says otherwise."""
PIECE = 2**16
"""Float64 differences held at a time (512 KiB): what stays in a core's cache."""


@torch.no_grad()
def nearest(
    queries: Tensor,
    support: Tensor,
    k: int,
    *,
    exclude: Tensor | None = None,
    ordered: bool = True,
    chunk: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Indices (Q, k) of the k points of `support` nearest to each query, ordered by (distance, index).

    queries: float32 (Q, F); support: float32 (S, F), finite, both on the CPU. Distances are Euclidean: the
    float64 sums of squared differences, so the same for any `chunk` (queries at a time) and `device` (where
    candidates are found). exclude: int64 (Q,), a support point that is no neighbour of the query, or -1.
    ordered=False gives the same k points in any order, and faster: few of them need float64.
    Never more than a block of the distance matrix is held.
    Raises ConfigError when the support holds fewer than k points that may be neighbours.
    """
    available = len(support) - (exclude is not None)
    if not 1 <= k <= available:
        raise ConfigError(
            f"k: {k} neighbours, but the support offers {available} of its {len(support)} points; "
            "use a larger support or a smaller k"
        )
    if exclude is None:
        exclude = torch.full((len(queries),), -1)
    centre = support.mean(dim=0)
    centred = [points - centre for points in (queries, support)]
    largest = max(abs(float(end)) for points in centred for end in points.aminmax())
    # A power of two changes no digits; with the largest number about 1 no product overflows, and what
    # underflows is far below the bound's slack.
    scale = 2.0 ** -max(-126, min(126, math.frexp(largest)[1]))
    near, far = (points.mul_(scale).to(device) for points in centred)
    norms = torch.linalg.vector_norm(far, dim=1, dtype=torch.float64)
    squares = norms.square().float()
    unsure = _uncertainty(near, norms.max())
    found = torch.empty(len(queries), k, dtype=torch.int64)
    for chosen in torch.arange(len(queries)).split(chunk or max(1, BLOCK // len(support))):
        with _full_precision():
            block = torch.addmm(squares, near[chosen], far.T, alpha=-2)
        left_out = (exclude[chosen] >= 0).nonzero()[:, 0]
        block[left_out, exclude[chosen][left_out]] = torch.inf
        rows = Rows(block, unsure[chosen], queries[chosen], exclude[chosen])
        found[chosen] = _decide(rows, support, k, k + SPARE, ordered)
    return found


def _uncertainty(queries: Tensor, furthest: Tensor) -> Tensor:
    """The bound 2 e of the module's docstring for each query, float64 (Q, 1)."""
    features = queries.shape[1]
    gamma = (features + 2) * UNIT / (1 - (features + 2) * UNIT)
    reach: Tensor = torch.linalg.vector_norm(queries, dim=1, dtype=torch.float64) + furthest
    return 2 * (gamma + 5 * UNIT) * reach.square().unsqueeze(1)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some queries and their part of the distance matrix."""

    block: Tensor  # (R, S), the a of the module's docstring
    unsure: Tensor  # (R, 1), 2 e
    queries: Tensor  # (R, F)
    exclude: Tensor  # (R,)

    def where(self, chosen: Tensor) -> Rows:
        """Those of the rows that are chosen, bool (R,)."""
        there = chosen.to(self.block.device)
        return Rows(self.block[there], self.unsure[there], self.queries[chosen], self.exclude[chosen])


def _decide(rows: Rows, support: Tensor, k: int, width: int, ordered: bool) -> Tensor:
    """The neighbours of each row, from its `width` smallest entries where these suffice, else from more."""
    width = min(width, len(support))
    values, candidates = rows.block.topk(width, largest=False)
    beyond = (values > values[:, k - 1 : k] + rows.unsure).cpu()
    candidates = candidates.cpu()
    found = torch.empty(len(values), k, dtype=torch.int64)
    settled = beyond[:, -1] | (width == len(support))
    if settled.any():
        last = int((~beyond[settled]).sum(dim=1).max())
        first = 0
        if not ordered and last > k:
            # By the same bounds these are nearer than everything from the k + 1-th smallest a on.
            within = (values + rows.unsure < values[:, k : k + 1]).cpu()
            first = int(within[settled, :k].sum(dim=1).min())
        found[settled, :first] = candidates[settled, :first]
        found[settled, first:] = _rank(
            rows.queries[settled], support, candidates[settled, first:last], rows.exclude[settled], k - first
        )
    if not settled.all():
        found[~settled] = _decide(rows.where(~settled), support, k, 4 * width, ordered)
    return found


def _rank(queries: Tensor, support: Tensor, candidates: Tensor, exclude: Tensor, k: int) -> Tensor:
    """The k candidates of each row nearest to its query, by (float64 distance, index)."""
    candidates = candidates.sort(dim=1).values
    distances = torch.empty(candidates.shape, dtype=torch.float64)
    columns = max(1, PIECE // support.shape[1])
    for left in range(0, candidates.shape[1], columns):
        some = candidates[:, left : left + columns]
        rows = max(1, columns // some.shape[1])
        for top in range(0, len(candidates), rows):
            piece = some[top : top + rows]
            points = support.index_select(0, piece.flatten()).view(*piece.shape, -1).double()
            points.sub_(queries[top : top + rows, None])
            distances[top : top + rows, left : left + columns] = points.square_().sum(dim=-1)
    distances[candidates == exclude[:, None]] = torch.inf
    order = distances.sort(dim=1, stable=True).indices[:, :k]
    return candidates.gather(1, order)


def vote(labels: Tensor, classes: int) -> Tensor:
    """The most frequent label of each row, the smallest among equals. labels: int64 (Q, k) -> (Q,)."""
    counts = torch.zeros(len(labels), classes, dtype=torch.int64)
    # argmax gives the first of equal maxima.
    return counts.scatter_add_(1, labels, torch.ones_like(labels)).argmax(dim=1)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Float32 products of float32 accuracy, whatever the process allows: the bound rests on it."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
