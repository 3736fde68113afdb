"""Spectra of symmetric operators known only by their products: extremes, trace and density.

Vectors keep the operator's dtype (float32 for networks: a basis of m vectors is by far the largest thing
in memory); scalars, Gram matrices and the small eigenproblems are float64, where they cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

COLUMNS_AT_ONCE = 1 << 20
"""Columns converted to float64 at a time."""

INDEPENDENT = 1e-6
"""Directions of a span of unit vectors count when their squared length is above this."""

THRESHOLDS = (1e-5, 1e-4, 1e-3, 1e-2)
"""How far below 0 negative mass begins, as shares of the largest magnitude of an eigenvalue; ascending."""

RESOLVED = 0.01
"""Bounds resolve a mass when they are at most this apart, or at most half of their middle."""

PIVOT = 1e-8
"""Pivots count as at least this times the largest number, where rounding of both kinds is as small."""

MARGIN = 3
"""The rounding of any product is taken for at most so many times the largest one measured."""


class Symmetric(Protocol):
    """A symmetric operator A on vectors of some length dim."""

    @property
    def products(self) -> Callable[[Tensor], Tensor]:
        """(k, dim) -> (k, dim), A times each row."""
        ...


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Gauss quadrature of one probe's spectral measure: nodes (m,) ascending, weights (m,) of sum 1."""

    nodes: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Jacobi:
    """The matrix T of one probe's spectral measure: alpha (m,) on its diagonal, beta[:-1] beside it.

    beta (m,): its last number would be beside the next diagonal entry. Both float64.
    """

    alpha: Tensor
    beta: Tensor

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (m,) of T, ascending, and its eigenvectors as columns (m, m)."""
        beside = self.beta[:-1]
        values, vectors = torch.linalg.eigh(
            torch.diag(self.alpha) + torch.diag(beside, 1) + torch.diag(beside, -1)
        )
        return values, vectors

    def quadrature(self) -> Quadrature:
        """Nodes: the Ritz values; weights: the squared first components of T's eigenvectors."""
        values, vectors = self.ritz()
        return Quadrature(values, vectors[0].square())

    def mass_below(self, x: float) -> tuple[float, float]:
        """Bounds on the share of the measure below x, the sharpest that alpha and beta allow.

        The Gauss-Radau rule with a node at x belongs to T with beta[-1] and one more diagonal entry, x + d
        with (T - x) delta = beta[-1]^2 e, d the last of delta (Golub 1973, "Some modified matrix eigenvalue
        problems", SIAM Review 15, section 7). The sum of its weights below x is at most the share, which is
        at most that sum and the weight at x: the inequalities of Chebyshev, Markov and Stieltjes (Akhiezer
        1965, "The Classical Moment Problem", chapter 2).
        """
        least = PIVOT * max(self.alpha.abs().max().item(), self.beta.max().item())
        shift = 0.0
        for alpha, beta in zip(self.alpha.tolist(), self.beta.tolist(), strict=True):
            pivot = alpha - x - shift  # of Gaussian elimination of T - x
            shift = beta**2 / (pivot if abs(pivot) > least else least or 1.0)
        rule = Jacobi(
            torch.cat([self.alpha, self.alpha.new_tensor([x + shift])]),
            torch.cat([self.beta, self.beta.new_zeros(1)]),
        ).quadrature()
        at = int((rule.nodes - x).abs().argmin())
        low = rule.weights[:at].sum().item()
        return low, low + rule.weights[at].item()


@dataclass(frozen=True, eq=False)
class Tridiagonal:
    """A V = V T + beta[-1] v e', after m steps: jacobi holds T and beta; basis (m + 1, dim).

    The rows of basis are V's columns and, last, v (zero where the start's Krylov space was exhausted before
    the steps were).
    """

    jacobi: Jacobi
    basis: Tensor


def lanczos(operator: Symmetric, starts: Tensor, steps: int) -> tuple[Tridiagonal, ...]:
    """`steps` steps of Lanczos from each row of `starts` (n, dim), in lockstep.

    One call of `products` a step serves all n runs. Every new vector is orthogonalised against its two
    predecessors and then against the whole basis, and once more if that shortened it by more than 1/sqrt 2
    (Daniel, Gragg, Kaufman & Stewart 1976: "twice is enough"). Without it, float32 Lanczos finds copies of
    the eigenvalues that have converged, and a density with too much mass there. Memory: n (steps + 1)
    vectors. A run ends early when its Krylov space is exhausted.
    """
    count, dim = starts.shape
    steps = min(steps, dim)
    basis = starts.new_zeros(count, steps + 1, dim)
    basis[:, 0] = starts / starts.norm(dim=1, keepdim=True)
    alpha, beta = torch.zeros(2, count, steps, dtype=torch.float64)
    lengths = [steps] * count
    active = list(range(count))
    for step in range(steps):
        images = operator.products(basis[active, step])
        for run, image in zip(list(active), images, strict=True):
            _extend(basis[run], alpha[run], beta[run], step, image)
            if beta[run, step] == 0:
                lengths[run] = step + 1
                active.remove(run)
        if not active:
            break
    return tuple(
        Tridiagonal(Jacobi(alpha[run, :m], beta[run, :m]), basis[run, : m + 1])
        for run, m in enumerate(lengths)
    )


def _extend(basis: Tensor, alpha: Tensor, beta: Tensor, step: int, rest: Tensor) -> None:
    """Fill in alpha, beta and basis[step + 1] from `rest`, the operator times basis[step], used up here."""
    alpha[step] = rest.double() @ basis[step].double()
    rest.sub_(basis[step], alpha=alpha[step].item())
    if step:
        rest.sub_(basis[step - 1], alpha=beta[step - 1].item())
    known = basis[: step + 1]
    length = _norm(rest)
    for _ in range(2):
        before = length
        rest.addmv_(known.T, known @ rest, alpha=-1)
        length = _norm(rest)
        if length > before / 2**0.5:
            break
    scale = max(alpha.abs().max().item(), beta.max().item())
    if length > torch.finfo(rest.dtype).eps * scale:
        beta[step] = length
        torch.div(rest, length, out=basis[step + 1])


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64).item())


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Approximate eigenpairs: values (k,) ascending, float64; vectors (k, dim) and their images A x."""

    values: Tensor
    vectors: Tensor
    images: Tensor

    @property
    def residuals(self) -> Tensor:
        """(k,) norm(A x - value x): an eigenvalue lies within this distance of the value."""
        rest = self.images - self.values.to(self.vectors)[:, None] * self.vectors
        return torch.tensor([_norm(row) for row in rest], dtype=torch.float64)

    def rounding(self, errors: Callable[[Tensor], Tensor]) -> float:
        """The norm of what rounding has added to A, an estimate from its `errors` in two products.

        MARGIN times the larger error of the lowest's and the highest's image. Products with them are the
        largest, and so is their rounding.
        """
        return MARGIN * max(_norm(error) for error in errors(self.vectors[[0, -1]]))


def ritz_pairs(run: Tridiagonal, top: int) -> Eigenpairs:
    """The `top` lowest and `top` highest Ritz pairs of a run (all, if it has fewer), without a product.

    A x = value x + beta[-1] s v, with s the last component of T's eigenvector, so that the residual is
    beta[-1] abs(s).
    """
    values, vectors = run.jacobi.ritz()
    chosen = _ends(len(values), top)
    values, coefficients = values[chosen], vectors[:, chosen].T
    pairs = coefficients.to(run.basis) @ run.basis[:-1]
    beyond = (run.jacobi.beta[-1] * coefficients[:, -1]).to(run.basis)
    images = values.to(run.basis)[:, None] * pairs + beyond[:, None] * run.basis[-1]
    return Eigenpairs(values, pairs, images)


def merge(first: Eigenpairs, second: Eigenpairs, top: int) -> Eigenpairs:
    """The `top` lowest and highest pairs of the span of both, by Rayleigh-Ritz, without a product.

    One run finds one copy of a repeated eigenvalue, several runs find as many copies as they are.
    """
    vectors, images = torch.cat([first.vectors, second.vectors]), torch.cat([first.images, second.images])
    lengths, directions = torch.linalg.eigh(_inner(vectors, vectors))
    independent = lengths > INDEPENDENT
    orthonormal = directions[:, independent] / lengths[independent].sqrt()
    projected = orthonormal.T @ _inner(vectors, images) @ orthonormal
    values, mixing = torch.linalg.eigh((projected + projected.T) / 2)
    chosen = _ends(len(values), top)
    coefficients = (orthonormal @ mixing[:, chosen]).T.to(vectors)
    return Eigenpairs(values[chosen], coefficients @ vectors, coefficients @ images)


def extremes(runs: Sequence[Tridiagonal], top: int, known: Sequence[Eigenpairs] = ()) -> Eigenpairs:
    """The `top` lowest and highest eigenpairs of these runs and of earlier ones, `known`, together."""
    return reduce(lambda a, b: merge(a, b, top), [*known, *(ritz_pairs(run, top) for run in runs)])


def _ends(count: int, top: int) -> list[int]:
    return [i for i in range(count) if i < top or i >= count - top]


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """The products of all rows, first @ second.T, in float64 on the CPU, without a float64 copy of either."""
    pieces = zip(first.split(COLUMNS_AT_ONCE, dim=1), second.split(COLUMNS_AT_ONCE, dim=1), strict=True)
    total = torch.zeros(len(first), len(second), dtype=torch.float64)
    for a, b in pieces:
        total += (a.double() @ b.double().T).cpu()
    return total


@dataclass(frozen=True)
class TraceEstimate:
    """A mean over independent probes and its standard error (0 where nothing was estimated)."""

    value: float
    standard_error: float


def trace(operator: Symmetric, probes: Tensor, basis: Tensor, inside: float) -> TraceEstimate:
    """The trace of A: exact on the span of `basis`, Hutchinson's estimate on the rest.

    tr(Q'AQ) + mean of c'Ac over c = (1 - QQ') probe, for `probes` (n, dim) of unit variance, n >= 2, and
    orthonormal Q: basis (q, dim), with tr(Q'AQ) = `inside`. Unbiased if Q is independent of the probes; its
    error is that of the rest alone. As Hutch++ (Meyer et al. 2021, arXiv 2010.09649), with the basis of a
    Lanczos run as Q, which costs nothing: `inside` is the sum of its alpha.
    """
    rest = probes - (probes @ basis.T) @ basis
    pairs = zip(rest, operator.products(rest), strict=True)
    dots = torch.tensor([(a.double() @ b.double()).item() for a, b in pairs], dtype=torch.float64)
    return TraceEstimate(inside + dots.mean().item(), dots.std().item() / len(dots) ** 0.5)


@dataclass(frozen=True, eq=False)
class Density:
    """Density of eigenvalues, of integral 1, smoothed by a Gaussian of standard deviation `sigma`.

    grid, values, spread: (G,); values is the mean over probes, spread the standard deviation between them.
    """

    grid: Tensor
    values: Tensor
    spread: Tensor
    sigma: float


def spectral_density(rules: Sequence[Quadrature], *, points: int = 512, width: float = 0.01) -> Density:
    """Stochastic Lanczos quadrature: mean over probes of the sum of weight x Gaussian(grid - node).

    sigma is `width` times the range of the nodes, the grid reaches 5 sigma beyond them. Source: Ghorbani
    et al. 2019, arXiv 1901.10159; Lin, Saad & Yang 2016, arXiv 1308.5467.
    """
    low = min(rule.nodes.min().item() for rule in rules)
    high = max(rule.nodes.max().item() for rule in rules)
    magnitude = max(abs(low), abs(high))
    sigma = width * (high - low) or THRESHOLDS[0] * magnitude or 1.0
    grid = torch.linspace(low - 5 * sigma, high + 5 * sigma, points, dtype=torch.float64)
    each = torch.stack([_smoothed(rule, grid, sigma) for rule in rules])
    return Density(grid, each.mean(dim=0), each.std(dim=0, correction=min(1, len(rules) - 1)), sigma)


def _smoothed(rule: Quadrature, grid: Tensor, sigma: float) -> Tensor:
    bells = torch.exp(-((grid[:, None] - rule.nodes).square()) / (2 * sigma**2))
    values: Tensor = bells @ rule.weights / (sigma * (2 * torch.pi) ** 0.5)
    return values


@dataclass(frozen=True)
class Mass:
    """Bounds on the share of eigenvalues below -threshold, of `relative` x the largest magnitude.

    The share of a random unit vector in the span of a share p of all dim eigenvectors has the mean p and
    the variance 2 p (1 - p) / (dim + 2), being Beta distributed; standard_error: that of the mean over the
    probes, at the p within the bounds where it is largest. low and high bound what it is the error of.
    """

    relative: float
    threshold: float
    low: float
    high: float
    standard_error: float

    @property
    def value(self) -> float:
        """The middle of the bounds."""
        return (self.low + self.high) / 2

    @property
    def resolved(self) -> bool:
        """Whether the bounds are at most RESOLVED apart, or half of the value."""
        return self.high - self.low <= max(RESOLVED, self.value / 2)


def negative_mass(
    matrices: Sequence[Jacobi], *, magnitude: float, rounding: float, dim: int
) -> tuple[Mass, ...]:
    """The share of eigenvalues below -threshold, at each of THRESHOLDS x magnitude, over all probes.

    magnitude: the largest of an eigenvalue. rounding: how far the matrices' operator is from the one that
    is meant, in norm, so that eigenvalues are up to this far from those that are meant (Weyl).
    """
    found = []
    for relative in THRESHOLDS:
        threshold = relative * magnitude
        low = sum(one.mass_below(-threshold - rounding)[0] for one in matrices) / len(matrices)
        high = sum(one.mass_below(-threshold + rounding)[1] for one in matrices) / len(matrices)
        widest = min(max(low, 0.5), high)
        variance = 2 * widest * (1 - widest) / (dim + 2)
        found.append(Mass(relative, threshold, low, high, (variance / len(matrices)) ** 0.5))
    return tuple(found)


def share_within(vector: Tensor, basis: Tensor) -> float:
    """The share of vector's (dim,) squared norm in the span of basis (k, dim), orthonormal: 0 to 1.

    A random vector has k/dim.
    """
    vector = vector.to(basis)
    inside = _norm(basis @ vector) ** 2
    return inside / _norm(vector) ** 2 if inside else 0.0
