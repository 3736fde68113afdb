"""Curvature against dense Hessians in float64, matrices of known spectrum, and two other libraries."""

import copy
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.func import functional_call

from seal_ray.analysis.curvature import ScaledOperator, filter_scale, measure_curvature, smoothing_of
from seal_ray.analysis.hessian import HessianOperator, average, hessian_operator
from seal_ray.analysis.lanczos import (
    Mass,
    extremes,
    lanczos,
    merge,
    negative_mass,
    ritz_pairs,
    share_within,
    spectral_density,
    trace,
)
from seal_ray.errors import ConfigError
from seal_ray.networks import Parts, build
from seal_ray.phases.losses import SmoothedCrossEntropy

SMOOTHING = 0.1
PARTS = Parts(("conv1", "bn1", "conv2", "bn2", "fc"), split_at="conv2")


class Small(nn.Module):
    """371 parameters: convolutions with and without bias and stride, batch norm, a skip, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean(dim=(2, 3)))


@dataclass(frozen=True)
class Matrix:
    """A dense symmetric matrix as an operator."""

    dense: Tensor

    def products(self, vectors: Tensor) -> Tensor:
        return vectors @ self.dense


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    network = Small().train()
    network(2 * normal(64, 3, 6, 6) + 1)  # running statistics unlike their defaults
    for norm in (network.bn1, network.bn2):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return network.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return normal(30, 3, 6, 6, seed=1)


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(30) % 3


@pytest.fixture(scope="module")
def dense(small: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The Hessian in float64 by torch alone, (371, 371)."""
    network = copy.deepcopy(small).double()
    named = dict(network.named_parameters())

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in named.values()])
        weights = {n: piece.view_as(p) for (n, p), piece in zip(named.items(), pieces, strict=True)}
        return smoothed(functional_call(network, weights, images.double()), labels)

    flat = torch.cat([p.detach().flatten() for p in named.values()])
    return torch.autograd.functional.hessian(loss, flat)


def operator_of(
    network: nn.Module, images: Tensor, labels: Tensor, *, batch: int = 8, **options: int
) -> HessianOperator:
    batches = list(zip(images.split(batch), labels.split(batch), strict=True))
    return hessian_operator(network, batches, smoothed, list(network.parameters()), **options)


def rotated(spectrum: Tensor, seed: int = 0) -> Matrix:
    """A symmetric float32 matrix with these eigenvalues."""
    rotation = torch.linalg.qr(normal(len(spectrum), len(spectrum), seed=seed).double())[0]
    return Matrix(((rotation * spectrum) @ rotation.T).float())


def unlike(first: Tensor, second: Tensor) -> float:
    return ((first - second).norm() / second.norm()).item()


def test_products_and_gradient_equal_the_dense_ones(small, images, labels, dense):
    operator = operator_of(small, images, labels)
    vectors = normal(3, 371)
    assert operator.dim == 371
    assert operator.images == 30
    assert unlike(operator.products(vectors).double(), vectors.double() @ dense) < 1e-5
    loss = smoothed(small(images), labels)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(small.parameters()))])
    assert operator.loss == pytest.approx(loss.item(), rel=1e-5)
    assert unlike(operator.gradient, gradient) < 1e-5


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, groups=2, padding=1),
        nn.Conv2d(4, 6, 3, dilation=2, stride=2),
        nn.Conv2d(4, 6, (1, 3), padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    ],
)
def test_convolutions_of_every_geometry_have_the_right_second_derivative(layer):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    images, labels = normal(4, 3, 7, 7), torch.tensor([0, 1, 2, 0])
    network(images)
    network.eval()
    parameters = list(network.parameters())
    operator = operator_of(network, images, labels)
    vector = normal(operator.dim)
    gradient = torch.autograd.grad(smoothed(network(images), labels), parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    expected = torch.autograd.grad(flat @ vector, parameters)
    assert unlike(operator.matvec(vector), torch.cat([e.flatten() for e in expected])) < 1e-5


@pytest.mark.parametrize("part", ["early", "late", "head", "conv2"])
def test_a_part_sees_its_own_block_of_the_hessian(small, images, labels, dense, part):
    flags = [torch.full((p.numel(),), PARTS.holds(part, name)) for name, p in small.named_parameters()]
    inside = torch.cat(flags)
    block = dense[inside][:, inside]
    batches = [(images, labels)]
    operator = hessian_operator(small, batches, smoothed, PARTS.parameters(small, part))
    assert operator.dim == len(block)
    assert unlike(operator.products(torch.eye(operator.dim)).double(), block) < 1e-5
    assert all(p.requires_grad and p.grad is None for p in small.parameters())


def test_kept_graphs_change_rounding_at_most(small, images, labels):
    vectors = normal(2, 371)
    none = operator_of(small, images, labels, graph_bytes=0).products(vectors)
    every = operator_of(small, images, labels, graph_bytes=1 << 30).products(vectors)
    some = operator_of(small, images, labels, graph_bytes=300_000).products(vectors)
    assert unlike(every, none) < 1e-6
    assert unlike(some, none) < 1e-6


class Counted:
    """Batches that count how often one was read."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches, self.reads = batches, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            self.reads += 1
            yield batch


@pytest.mark.parametrize(("graph_bytes", "reads"), [(1 << 30, 0), (0, 3)])
def test_data_are_read_again_only_when_graphs_do_not_fit(small, images, labels, graph_bytes, reads):
    batches = Counted(list(zip(images.split(10), labels.split(10), strict=True)))
    operator = hessian_operator(small, batches, smoothed, list(small.parameters()), graph_bytes=graph_bytes)
    batches.reads = 0
    operator.products(normal(4, 371))
    assert batches.reads == reads


def test_shards_average_to_the_whole(small, images, labels):
    whole = operator_of(small, images, labels)
    shards = [operator_of(small, images[a:b], labels[a:b]) for a, b in ((0, 7), (7, 20), (20, 30))]
    mean = average(shards, [shard.images for shard in shards])
    vectors = normal(2, 371)
    assert (mean.images, mean.dim) == (30, 371)
    assert mean.loss == pytest.approx(whole.loss, rel=1e-5)
    assert unlike(mean.gradient, whole.gradient) < 1e-5
    assert unlike(mean.products(vectors), whole.products(vectors)) < 1e-5


def test_a_network_in_training_mode_is_refused(small, images, labels):
    network = copy.deepcopy(small)
    network.bn2.train()
    with pytest.raises(ConfigError, match=r"bn2 \(BatchNorm2d\) is in training mode.*network\.eval\(\)"):
        operator_of(network, images, labels)
    dropping = nn.Sequential(small, nn.Dropout()).eval()
    dropping[1].train()
    with pytest.raises(ConfigError, match=r"1 \(Dropout\) is in training mode"):
        operator_of(dropping, images, labels)


def test_a_batch_norm_without_running_statistics_is_refused(images, labels):
    network = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), Small()).eval()
    with pytest.raises(ConfigError, match="without running statistics"):
        operator_of(network, images, labels)


class AlwaysDropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


def test_chance_inside_the_network_is_refused(small, images, labels):
    with pytest.raises(ConfigError, match="two passes over the data give different gradients"):
        operator_of(nn.Sequential(AlwaysDropping(), small).eval(), images, labels)


class Shuffled:
    """Other images at each pass, as from a shuffling loader that drops its last batch."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels))[:16]
        yield self.images[order], self.labels[order]


@pytest.mark.parametrize("graph_bytes", [0, 1 << 30])
def test_data_that_differ_between_passes_are_refused(small, images, labels, graph_bytes):
    parameters = list(small.parameters())
    sources: list[Callable[[], object]] = [
        lambda: Shuffled(images, labels),
        lambda: iter([(images, labels)] * 3),
    ]
    for source in sources:
        with pytest.raises(ConfigError, match="two passes over the data give different gradients"):
            hessian_operator(small, source(), smoothed, parameters, graph_bytes=graph_bytes)


def test_a_wrong_second_derivative_is_refused(small, images, labels):
    class Wrong(torch.autograd.Function):
        """x[i] x[i-1], one term of whose first derivative is held constant."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x.roll(1, dims=1)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * x.roll(1, dims=1) + (g * x.detach()).roll(-1, dims=1)

    with pytest.raises(ConfigError, match="not symmetric"):
        hessian_operator(
            small,
            [(images, labels)],
            lambda logits, y: smoothed(Wrong.apply(logits), y),
            list(small.parameters()),
        )


def test_no_images_and_diverged_weights_are_refused(small, images, labels):
    with pytest.raises(ConfigError, match="no images"):
        hessian_operator(small, [], smoothed, list(small.parameters()))
    with pytest.raises(ConfigError, match="not finite"):
        operator_of(small, images * torch.nan, labels)


def test_lanczos_satisfies_its_recurrence_on_an_orthonormal_basis():
    matrix = rotated(torch.linspace(-3, 50, 200, dtype=torch.float64) ** 2)
    (run,) = lanczos(matrix, normal(1, 200), 80)
    basis = run.basis[:-1].double()
    assert torch.allclose(run.basis.double() @ run.basis.double().T, torch.eye(81).double(), atol=2e-6)
    tridiagonal = (
        torch.diag(run.jacobi.alpha)
        + torch.diag(run.jacobi.beta[:-1], 1)
        + torch.diag(run.jacobi.beta[:-1], -1)
    )
    beyond = torch.zeros(80, 200, dtype=torch.float64)
    beyond[-1] = run.jacobi.beta[-1] * run.basis[-1].double()
    assert unlike(basis @ matrix.dense.double(), tridiagonal @ basis + beyond) < 1e-6


def test_runs_in_lockstep_are_the_runs_alone():
    matrix = rotated(torch.linspace(-1, 5, 60, dtype=torch.float64))
    starts = normal(3, 60)
    for start, run in zip(starts, lanczos(matrix, starts, 20), strict=True):
        (alone,) = lanczos(matrix, start[None], 20)
        assert torch.allclose(run.jacobi.alpha, alone.jacobi.alpha, rtol=1e-4, atol=1e-5)
        assert torch.allclose(run.jacobi.beta, alone.jacobi.beta, rtol=1e-4, atol=1e-5)


def test_extremes_of_a_clustered_spectrum_with_negative_ends():
    bulk = 1e-3 * normal(295).double()
    ends = torch.tensor([-2.0, -1.99, 30.0, 30.01, 100.0], dtype=torch.float64)
    matrix = rotated(torch.cat([bulk, ends]))
    found = extremes(lanczos(matrix, normal(2, 300), 40), 3)
    assert torch.allclose(found.values[:2], ends[:2], rtol=1e-4)
    assert torch.allclose(found.values[-3:], ends[2:], rtol=1e-5)
    true = replace(found, images=matrix.products(found.vectors)).residuals
    assert torch.allclose(true[[0, 1, 3, 4, 5]], torch.zeros(5).double(), atol=2e-3)


def test_residuals_bound_the_distance_to_an_eigenvalue_before_convergence():
    spectrum = torch.linspace(-1, 1, 300, dtype=torch.float64) ** 3
    matrix = rotated(spectrum)
    (run,) = lanczos(matrix, normal(1, 300), 12)
    pairs = ritz_pairs(run, 3)
    vectors = run.jacobi.ritz()[1]
    claimed = (run.jacobi.beta[-1] * vectors[-1]).abs()[[0, 1, 2, 9, 10, 11]]
    assert torch.allclose(pairs.residuals, claimed, rtol=1e-3, atol=1e-6)
    measured = replace(pairs, images=matrix.products(pairs.vectors))
    assert torch.allclose(measured.residuals, claimed, rtol=1e-3, atol=1e-6)
    nearest = (pairs.values[:, None] - spectrum).abs().min(dim=1).values
    assert (nearest <= pairs.residuals + 1e-6).all()
    assert (pairs.values[0] - spectrum[0]) > 1e-3  # not converged: the bound is not vacuous


def test_several_runs_find_the_copies_of_a_repeated_eigenvalue_and_no_more():
    repeated = torch.tensor([-4.0, -4.0, 9.0, 9.0, 9.0], dtype=torch.float64)
    matrix = rotated(torch.cat([torch.linspace(0, 1, 95, dtype=torch.float64), repeated]))
    runs = lanczos(matrix, normal(4, 100), 30)
    found = extremes(runs, 4).values
    assert torch.allclose(found[-4:], torch.tensor([1, 9, 9, 9]).double(), atol=2e-2)
    assert torch.allclose(found[:3], torch.tensor([-4, -4, 0]).double(), atol=2e-2)
    one_by_one = merge(extremes(runs[:2], 4), extremes(runs[2:], 4), 4).values
    assert torch.allclose(one_by_one[-3:], repeated[2:], atol=1e-4)


def test_an_exhausted_krylov_space_ends_a_run_early():
    matrix = Matrix(torch.diag(torch.tensor([2.0, 2, 2, 5, 5, -1])))
    run, lone = lanczos(matrix, torch.cat([torch.ones(1, 6), torch.eye(6)[:1]]), 6)
    assert torch.allclose(run.jacobi.ritz()[0][[0, -1]], torch.tensor([-1.0, 5]).double(), atol=1e-5)
    rule = run.jacobi.quadrature()
    assert (rule.weights * rule.nodes).sum().item() == pytest.approx(15 / 6, rel=1e-5)
    assert lone.jacobi.alpha.tolist() == [2.0]
    assert lone.basis[1].tolist() == [0] * 6


def test_trace_is_within_three_standard_errors(small, images, labels, dense):
    operator = operator_of(small, images, labels)
    true = dense.trace().item()
    signs = normal(20, 371, seed=3).sign()
    (run,) = lanczos(operator, normal(1, 371, seed=4), 25)
    found = trace(operator, signs, run.basis[:-1], run.jacobi.alpha.sum().item())
    plain = trace(operator, signs, run.basis[:0], 0.0)
    for estimate in (found, plain):
        assert abs(estimate.value - true) < 3 * estimate.standard_error + 1e-4 * abs(true)
    assert found.standard_error < plain.standard_error / 3


def test_standard_error_of_the_trace_is_the_spread_of_repeats():
    matrix = rotated(torch.linspace(-1, 2, 100, dtype=torch.float64))
    empty = torch.empty(0, 100)
    repeats = [trace(matrix, normal(10, 100, seed=s).sign(), empty, 0.0) for s in range(200)]
    values = torch.tensor([repeat.value for repeat in repeats])
    claimed = torch.tensor([repeat.standard_error for repeat in repeats]).square().mean().sqrt()
    assert values.mean().item() == pytest.approx(50, abs=4 * values.std().item() / 200**0.5)
    assert values.std().item() == pytest.approx(claimed.item(), rel=0.2)


def test_density_has_the_moments_of_the_dense_spectrum(small, images, labels, dense):
    operator = operator_of(small, images, labels)
    rules = [run.jacobi.quadrature() for run in lanczos(operator, normal(16, 371), 30)]
    for power in (1, 2):
        moments = torch.stack([(rule.weights * rule.nodes**power).sum() for rule in rules])
        true = torch.linalg.eigvalsh(dense).pow(power).mean().item()
        assert abs(moments.mean().item() - true) < 3 * moments.std().item() / 16**0.5
    density = spectral_density(rules)
    assert torch.trapezoid(density.values, density.grid).item() == pytest.approx(1, abs=1e-4)
    mean = sum((rule.weights * rule.nodes).sum().item() for rule in rules) / 16
    assert torch.trapezoid(density.values * density.grid, density.grid).item() == pytest.approx(
        mean, rel=1e-3
    )
    assert (density.spread > 0).any()


def test_quadrature_integrates_polynomials_of_degree_twice_the_steps_exactly():
    matrix = rotated(torch.linspace(-1, 1, 50, dtype=torch.float64))
    start = normal(1, 50)
    rule = lanczos(matrix, start, 4)[0].jacobi.quadrature()
    unit = (start[0] / start[0].norm()).double()
    for power in range(8):
        true = unit @ torch.linalg.matrix_power(matrix.dense.double(), power) @ unit
        assert (rule.weights * rule.nodes**power).sum().item() == pytest.approx(true.item(), abs=1e-5)


def wide_spectrum(dim: int) -> Tensor:
    """As a network's: all but 5 % within 1e-6 to 1e-2 of the largest, a quarter negative, a negative tail."""
    draws = torch.Generator().manual_seed(1)
    uniform = torch.rand(2, dim, generator=draws, dtype=torch.float64)
    spectrum = 10 ** (-6 + 4 * uniform[0])
    spectrum[uniform[1] < 0.25] *= -0.3
    count = dim // 40
    spectrum[:count] = torch.logspace(-2, 0, count, dtype=torch.float64)
    spectrum[count : 2 * count] = -torch.logspace(-4, -2.1, count, dtype=torch.float64)
    return 50 * spectrum


@dataclass(frozen=True)
class Wide:
    """A matrix of wide spectrum, by its eigenvectors in numpy, and starts of Lanczos runs."""

    operator: Matrix
    values: np.ndarray
    vectors: np.ndarray
    starts: Tensor

    def exact(self, probe: int, below: float) -> float:
        """The probe's measure of all below."""
        start = self.starts[probe].double().numpy()
        weights = (self.vectors.T @ start) ** 2 / (start @ start)
        return float(weights[self.values < below].sum())


@pytest.fixture(scope="module")
def wide() -> Wide:
    spectrum = wide_spectrum(400)
    rotation = torch.linalg.qr(normal(400, 400).double())[0]
    dense = (rotation * spectrum) @ rotation.T
    values, vectors = np.linalg.eigh(((dense + dense.T) / 2).numpy())
    return Wide(Matrix((dense + dense.T) / 2), values, vectors, normal(5, 400, seed=2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("steps", [1, 6, 40, 90])
def test_bounds_hold_the_mass_of_every_probe(wide, steps, dtype):
    operator, starts = Matrix(wide.operator.dense.to(dtype)), wide.starts.to(dtype)
    places = [-50 * relative for relative in (1e-5, 1e-4, 1e-3, 1e-2)]
    # Rounding moves eigenvalues by about eps x the largest, and turns eigenvectors.
    rounding, turned = (0, 1e-9) if dtype == torch.float64 else (50 * torch.finfo(dtype).eps, 1e-5)
    for probe, run in enumerate(lanczos(operator, starts, steps)):
        for place in (*places, 0.3, -60.0, 60.0):  # and among the outliers, and beyond both ends
            (low, _), (_, high) = (
                run.jacobi.mass_below(place - rounding),
                run.jacobi.mass_below(place + rounding),
            )
            assert low - turned <= wide.exact(probe, place) <= high + turned


def test_more_steps_narrow_the_bounds_until_they_meet(wide):
    widths = []
    for steps in (20, 40, 90, 400):
        (run,) = lanczos(wide.operator, wide.starts[:1].double(), steps)
        low, high = run.jacobi.mass_below(-0.05)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 0.02
    assert widths[-1] < 1e-9


def test_bounds_are_attained_by_a_measure_of_the_same_moments():
    # Moments 0 to 2 of the uniform distribution on {-1, 0, 1}; at x = -1/2 Radau's nodes are -1/2 and 4/3.
    matrix = Matrix(torch.diag(torch.tensor([-1.0, 0, 1], dtype=torch.float64)))
    (run,) = lanczos(matrix, torch.ones(1, 3, dtype=torch.float64), 1)
    assert run.jacobi.mass_below(-0.5) == pytest.approx((0, (2 / 3) / (1 / 4 + 2 / 3)))
    assert run.jacobi.mass_below(0.5) == pytest.approx(((1 / 4) / (1 / 4 + 2 / 3), 1))
    low, high = run.jacobi.mass_below(0.0)  # a Gauss node itself: the other one is infinitely far
    assert (low, high) == pytest.approx((0, 1), abs=1e-6)


def negative(wide: Wide, steps: int, count: int = 5, rounding: float = 0.0) -> tuple[Mass, ...]:
    matrices = [run.jacobi for run in lanczos(wide.operator, wide.starts[:count].double(), steps)]
    return negative_mass(matrices, magnitude=50, rounding=rounding, dim=400)


def test_negative_mass_is_given_where_it_is_resolved_alone(wide):
    for steps in (40, 90):
        found = negative(wide, steps)
        assert [mass.relative for mass in found] == [1e-5, 1e-4, 1e-3, 1e-2]
        assert not found[0].resolved
        for mass in found:
            exact = (wide.values < -mass.threshold).mean()
            assert mass.threshold == pytest.approx(50 * mass.relative)
            assert mass.low - 3 * mass.standard_error <= exact <= mass.high + 3 * mass.standard_error
    assert found[2].resolved
    assert abs(found[2].value - (wide.values < -0.05).mean()) < 3 * found[2].standard_error
    # Rounding as large as the threshold may have made any of the small eigenvalues negative.
    assert not negative(wide, 90, rounding=0.05)[2].resolved


def test_the_standard_error_of_a_mass_is_the_spread_of_means():
    starts = normal(300, 60).double()
    matrix = Matrix(torch.diag(torch.tensor([-2.0] * 15 + [1.0] * 40 + [5.0] * 5, dtype=torch.float64)))
    matrices = [run.jacobi for run in lanczos(matrix, starts, 5)]
    found = negative_mass(matrices, magnitude=5, rounding=0, dim=60)[0]
    shares = starts[:, :15].square().sum(dim=1) / starts.square().sum(dim=1)
    assert (found.low, found.high) == pytest.approx([shares.mean().item()] * 2)
    assert found.standard_error == pytest.approx(shares.std().item() / 300**0.5, rel=0.15)


def test_a_spectrum_without_negative_eigenvalues_has_no_negative_mass():
    spectrum = torch.cat([torch.zeros(200), torch.linspace(2, 9, 200)]).double()
    matrices = [run.jacobi for run in lanczos(rotated(spectrum), normal(2, 400), 60)]
    found = negative_mass(matrices, magnitude=9, rounding=9e-6, dim=400)
    assert all(mass.resolved and mass.high < 1e-4 for mass in found[1:])


def test_share_within_a_span():
    basis = torch.linalg.qr(normal(50, 4))[0].T
    inside, outside = normal(4) @ basis, normal(50, seed=9)
    outside -= (basis @ outside) @ basis
    outside *= 2 * inside.norm() / outside.norm()
    assert share_within(inside, basis) == pytest.approx(1, rel=1e-5)
    assert share_within(inside + outside, basis) == pytest.approx(0.2, rel=1e-4)
    assert share_within(torch.zeros(50), basis) == 0


def measure(network: nn.Module, images: Tensor, labels: Tensor, **options):
    settings = {"steps": 60, "probes": 2, "top": 3, "batch": 8, "label_smoothing": SMOOTHING, **options}
    return measure_curvature(network, images, labels, parts=PARTS, **settings)


def test_everything_measured_agrees_with_the_dense_hessian(small, images, labels, dense):
    result = measure(small, images, labels)
    values, vectors = torch.linalg.eigh(dense)
    assert [e.value for e in result.largest] == pytest.approx(values[-3:].flip(0).tolist(), rel=1e-4)
    assert [e.value for e in result.smallest] == pytest.approx(values[:3].tolist(), rel=1e-4)
    assert max(e.residual for e in result.largest + result.smallest) < 1e-3 * values[-1]
    assert values[0] < 0
    assert abs(result.trace.value - dense.trace().item()) < 3 * result.trace.standard_error
    gradient = operator_of(small, images, labels).gradient.double()
    inside = (vectors[:, -3:].T @ gradient).square().sum() / gradient.square().sum()
    assert result.gradient_overlap == pytest.approx(inside.item(), rel=1e-3)
    assert result.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert list(result.weight_norms) == list(PARTS.stages)
    scale = filter_scale(small.parameters()).double()
    normalised = torch.linalg.eigvalsh(scale[:, None] * dense * scale)[-1].item()
    assert result.sharpness.value == pytest.approx(normalised, rel=1e-3)


@dataclass(frozen=True)
class Trained:
    """A trained network of 1,256 parameters, its images, and its dense Hessian's eigenvalues in float64."""

    network: nn.Module
    images: Tensor
    labels: Tensor
    values: Tensor
    normalised: Tensor  # of the Hessian in units of the filters' norms


@pytest.fixture(scope="module")
def trained() -> Trained:
    torch.manual_seed(0)
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 6, 3, padding=1, bias=False),
            bn1=nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()),
            conv2=nn.Conv2d(6, 16, 3, stride=2, padding=1),
            bn2=nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            fc=nn.Linear(16, 10),
        )
    )
    labels = torch.arange(40) % 10
    images = normal(10, 3, 6, 6, seed=3)[labels] + 1.5 * normal(40, 3, 6, 6, seed=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    network.eval()
    double = copy.deepcopy(network).double()
    named = dict(double.named_parameters())

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in named.values()])
        weights = {n: piece.view_as(p) for (n, p), piece in zip(named.items(), pieces, strict=True)}
        return smoothed(functional_call(double, weights, (images.double(),)), labels)

    flat = torch.cat([p.detach().flatten() for p in named.values()])
    hessian = torch.func.jacrev(torch.func.grad(loss), chunk_size=64)(flat)
    scale = filter_scale(named.values())
    normalised = torch.linalg.eigvalsh(scale[:, None] * hessian * scale)
    return Trained(network, images, labels, torch.linalg.eigvalsh(hessian), normalised)


@pytest.mark.parametrize(("steps", "probes"), [(20, 2), (60, 4)])
def test_bounds_of_a_network_hold_its_dense_negative_mass(trained, steps, probes):
    result = measure(trained.network, trained.images, trained.labels, steps=steps, probes=probes)
    for mass in result.negative:
        exact = (trained.values < -mass.threshold).double().mean().item()
        assert mass.low - 3 * mass.standard_error <= exact <= mass.high + 3 * mass.standard_error
    given = result.to_json()["negative_mass"]
    resolved = [mass for mass in result.negative if mass.resolved]
    assert [one["resolved"] for one in given["bounds"]] == [mass.resolved for mass in result.negative]
    assert (given["resolved"] is None) == (not resolved) == (steps == 20)
    if resolved:
        assert given["resolved"]["relative"] == resolved[0].relative == min(m.relative for m in resolved)
        assert given["resolved"]["low"] <= given["resolved"]["value"] <= given["resolved"]["high"]


@pytest.mark.parametrize("steps", [12, 80])
def test_an_eigenvalue_of_the_float64_hessian_lies_within_each_residual(trained, steps):
    result = measure(trained.network, trained.images, trained.labels, steps=steps)
    for values, found in (
        (trained.values, result.largest + result.smallest),
        (trained.normalised, [result.sharpness]),
    ):
        for one in found:
            assert (values - one.value).abs().min() <= one.residual
    if steps == 80:  # where they are of rounding's size
        assert max(one.residual for one in result.largest) < 1e-4 * trained.values[-1]
        assert [e.value for e in result.largest] == pytest.approx(
            trained.values[-3:].flip(0).tolist(), rel=1e-5
        )


def test_movement_share_looks_at_the_part_alone(small, images, labels):
    result = measure(small, images, labels, part="early", steps=20)
    before = small.state_dict()
    pieces = result.top_vectors[0].split([before[name].numel() for name in result.names])
    after = {name: tensor + 7 for name, tensor in before.items()}
    for name, piece in zip(result.names, pieces, strict=True):
        after[name] = before[name] + piece.view_as(before[name])
    assert result.names == ("conv1.weight", "bn1.weight", "bn1.bias")
    assert result.movement_share(before, after) == pytest.approx(1, abs=1e-4)


def test_the_result_repeats_and_memory_bounds_do_not_change_it(small, images, labels):
    result = measure(small, images, labels, probes=3, steps=25).to_json()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert measure(small, images, labels, probes=3, steps=25).to_json() == result
    tight = measure(small, images, labels, probes=3, steps=25, graph_bytes=0, basis_bytes=0).to_json()
    for key in ("largest", "smallest"):
        ours, theirs = ([e["value"] for e in r[key]] for r in (tight, result))
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert tight["trace"]["value"] == pytest.approx(result["trace"]["value"], rel=1e-5)
    other = measure(small, images, labels, probes=3, steps=25, seed=1).to_json()
    assert other["trace"]["value"] != result["trace"]["value"]


def test_sharpness_does_not_see_the_scale_that_batch_norm_undoes(small, images, labels):
    rescaled = copy.deepcopy(small)
    with torch.no_grad():
        rescaled.conv1.weight *= 3
        rescaled.bn1.running_mean *= 3
        rescaled.bn1.running_var *= 9
        rescaled.bn1.eps *= 9
    assert torch.allclose(rescaled(images), small(images), atol=1e-5)
    plain, scaled = (measure(n, images, labels, part="conv1", steps=20) for n in (small, rescaled))
    assert scaled.largest[0].value == pytest.approx(plain.largest[0].value / 9, rel=1e-3)
    assert scaled.sharpness.value == pytest.approx(plain.sharpness.value, rel=1e-3)


def test_scaled_operator_is_the_hessian_in_units_of_the_scale(small, images, labels, dense):
    scale = normal(371).abs()
    scaled = ScaledOperator(operator_of(small, images, labels), scale)
    vectors = normal(3, 371, seed=2)
    expected = vectors.double() @ (scale.double()[:, None] * dense * scale.double())
    assert unlike(scaled.products(vectors).double(), expected) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"), [({"probes": 1}, "at least 2"), ({"steps": 4, "top": 3}, "more steps")]
)
def test_settings_that_cannot_be_measured_are_refused(small, images, labels, options, message):
    with pytest.raises(ConfigError, match=message):
        measure(small, images, labels, **options)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    network = build("resnet18", classes=10, stem="cifar", width=4, generator=generator)
    network.train()(normal(64, 3, 16, 16))
    return network.eval()


def test_a_resnet_has_pyhessians_top_eigenvalue(resnet):
    oracle = pytest.importorskip("pyhessian")
    images, labels = normal(40, 3, 16, 16, seed=5), torch.arange(40) % 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls backward(create_graph=True), which torch warns of
        theirs = oracle.hessian(copy.deepcopy(resnet), smoothed, data=(images, labels), cuda=False)
        (expected,), _ = theirs.eigenvalues(maxIter=300, tol=1e-6)
    operator = operator_of(resnet, images, labels, batch=20)
    found = extremes(lanczos(operator, normal(1, operator.dim), 40), 1)
    assert found.values[-1].item() == pytest.approx(expected, rel=1e-3)


def test_a_resnet_has_curvlinops_products(resnet):
    oracle = pytest.importorskip("curvlinops")
    images, labels = normal(20, 3, 16, 16, seed=6), torch.arange(20) % 10
    named = dict(resnet.named_parameters())
    theirs = oracle.HessianLinearOperator(
        resnet, nn.CrossEntropyLoss(label_smoothing=SMOOTHING), list(named.values()), [(images, labels)]
    )
    operator = operator_of(resnet, images, labels, batch=20)
    vector = normal(operator.dim)
    assert unlike(operator.matvec(vector), theirs @ vector) < 1e-5


def test_the_curvature_of_another_loss_than_cross_entropy_is_refused():
    def focal(logits, labels):
        return logits.sum()

    focal.name = "focal"
    assert smoothing_of(SmoothedCrossEntropy(0.3)) == 0.3
    with pytest.raises(ConfigError, match="is that of the loss ce, and this run's is focal; leave it out"):
        smoothing_of(focal)
