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

CHUNK = 1 << 20
"""Columns converted to float64 at a time."""

INDEPENDENT = 1e-6
"""Directions of a span of unit vectors count when their squared length is above this."""

NEGATIVE = 1e-5
"""Nodes count as negative below minus this times the largest magnitude; above it they are rounding."""


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
class Tridiagonal:
    """A V = V T + beta[-1] v e', after m steps: alpha (m,) and beta (m,), float64; basis (m + 1, dim).

    T has alpha on its diagonal and beta[:-1] beside it; the rows of basis are V's columns and, last, v
    (zero where the start's Krylov space was exhausted before the steps were).
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor

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
        Tridiagonal(alpha[run, :m], beta[run, :m], basis[run, : m + 1]) for run, m in enumerate(lengths)
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

    def remeasured(self, operator: Symmetric) -> Eigenpairs:
        """The same vectors with images computed by the operator: k products, and true residuals."""
        return Eigenpairs(self.values, self.vectors, operator.products(self.vectors))


def ritz_pairs(run: Tridiagonal, top: int) -> Eigenpairs:
    """The `top` lowest and `top` highest Ritz pairs of a run (all, if it has fewer), without a product.

    A x = value x + beta[-1] s v, with s the last component of T's eigenvector, so that the residual is
    beta[-1] abs(s).
    """
    values, vectors = run.ritz()
    chosen = _ends(len(values), top)
    values, coefficients = values[chosen], vectors[:, chosen].T
    pairs = coefficients.to(run.basis) @ run.basis[:-1]
    beyond = (run.beta[-1] * coefficients[:, -1]).to(run.basis)
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
    pieces = zip(first.split(CHUNK, dim=1), second.split(CHUNK, dim=1), strict=True)
    total = torch.zeros(len(first), len(second), dtype=torch.float64)
    for a, b in pieces:
        total += (a.double() @ b.double().T).cpu()
    return total


@dataclass(frozen=True)
class Estimate:
    """A mean over independent probes and its standard error (0 where nothing was estimated)."""

    value: float
    standard_error: float


def _estimate(samples: Tensor) -> Estimate:
    """The mean of samples (n,), n >= 2."""
    return Estimate(samples.mean().item(), samples.std().item() / len(samples) ** 0.5)


def sketch(operator: Symmetric, probes: Tensor) -> Tensor:
    """An orthonormal basis (n, dim) of the operator's image of n < dim random probes: n products."""
    orthonormal: Tensor = torch.linalg.qr(operator.products(probes).T)[0].T
    return orthonormal


def trace(operator: Symmetric, probes: Tensor, basis: Tensor, images: Tensor) -> Estimate:
    """The trace of A: exact on the span of `basis`, Hutchinson's estimate on the rest.

    tr(Q'AQ) + mean of c'Ac over c = (1 - QQ') probe, for `probes` (n, dim) of unit variance, n >= 2, and
    orthonormal Q: basis (q, dim), whose `images` (q, dim) are A times it. Unbiased if Q is independent of
    the probes; its error is that of the rest alone. Q from `sketch` makes it Hutch++ (Meyer et al. 2021,
    arXiv 2010.09649); converged eigenvectors serve as well, and cost nothing after Lanczos.
    """
    rest = probes - (probes @ basis.T) @ basis
    estimate = _estimate(_dots(rest, operator.products(rest)))
    return Estimate(_dots(basis, images).sum().item() + estimate.value, estimate.standard_error)


def _dots(first: Tensor, second: Tensor) -> Tensor:
    """Row by row inner products (k,), in float64."""
    dots = [(a.double() @ b.double()).item() for a, b in zip(first, second, strict=True)]
    return torch.tensor(dots, dtype=torch.float64)


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
    sigma = width * (high - low) or NEGATIVE * magnitude or 1.0
    grid = torch.linspace(low - 5 * sigma, high + 5 * sigma, points, dtype=torch.float64)
    each = torch.stack([_smoothed(rule, grid, sigma) for rule in rules])
    return Density(grid, each.mean(dim=0), each.std(dim=0, correction=min(1, len(rules) - 1)), sigma)


def _smoothed(rule: Quadrature, grid: Tensor, sigma: float) -> Tensor:
    bells = torch.exp(-((grid[:, None] - rule.nodes).square()) / (2 * sigma**2))
    values: Tensor = bells @ rule.weights / (sigma * (2 * torch.pi) ** 0.5)
    return values


def negative_mass(rules: Sequence[Quadrature]) -> Estimate:
    """The share of eigenvalues below -NEGATIVE x the largest magnitude of a node, over two or more probes."""
    bound = -NEGATIVE * max(rule.nodes.abs().max().item() for rule in rules)
    return _estimate(torch.stack([rule.weights[rule.nodes < bound].sum() for rule in rules]))


def share_within(vector: Tensor, basis: Tensor) -> float:
    """The share of vector's (dim,) squared norm in the span of basis (k, dim), orthonormal: 0 to 1.

    A random vector has k/dim.
    """
    vector = vector.to(basis)
    inside = _norm(basis @ vector) ** 2
    return inside / _norm(vector) ** 2 if inside else 0.0
