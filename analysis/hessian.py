"""The Hessian of a mean training loss as an operator: products with vectors, never the matrix."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.autograd import grad
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from seal_ray.errors import ConfigError
from seal_ray.streams import stream

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images (B, ...) and labels (B,), the same on every iteration: a list, not a generator."""

Objective = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of logits (B, K) for labels (B,), a scalar."""

SYMMETRY = 1e-4
"""Largest abs(<u, Hv> - <v, Hu>) accepted, relative to norm(u) norm(Hv) + norm(v) norm(Hu)."""


@dataclass(frozen=True, eq=False)
class HessianOperator:
    """H, the second derivative of the mean loss over `images` images by `dim` parameters.

    gradient: (dim,), the first derivative. products: (k, dim) -> (k, dim), H times each row; one pass over
    the data serves all k. exact: the same in float64, from the same weights and images; it keeps no graphs.
    Parameters are flattened and concatenated in the network's order.
    """

    dim: int
    gradient: Tensor
    loss: float
    images: int
    products: Callable[[Tensor], Tensor]

    def matvec(self, vector: Tensor) -> Tensor:
        """H times a vector (dim,)."""
        return self.products(vector[None])[0]


def hessian_operator(
    network: nn.Module,
    batches: Batches,
    loss: Objective,
    parameters: Sequence[nn.Parameter],
    *,
    graph_bytes: int = 2 << 30,
) -> HessianOperator:
    """The Hessian of the loss over all images of `batches` by `parameters`, the others held constant.

    H v is the derivative of <gradient, v> (Pearlmutter 1994, "Fast exact multiplication by the Hessian").
    The graph of the gradient is a third of a product's work and does not depend on v: as many batches as
    fit in about `graph_bytes` keep theirs, the others build it anew for every call of `products`. The
    numbers are the same either way; 0 keeps none.

    Refused with a ConfigError: a module in training mode (batch norm would couple the images of a batch,
    dropout would draw), no data, a loss that is not finite, and whatever else makes two passes differ.
    """
    _require_eval(network)
    problem = _problem(network, parameters, batches, loss)
    limit = graph_bytes // problem.bytes_of_a_graph()
    kept: list[_Graph] = []
    total = _Total(problem.dim, problem.variables[0])
    for graph in problem.graphs():
        total.add(graph)
        if len(kept) < limit:
            kept.append(graph)
        del graph  # before the next one is built
    images = total.images

    def products(vectors: Tensor) -> Tensor:
        results = torch.zeros_like(vectors)
        others = problem.graphs(skip=len(kept)) if len(kept) < total.batches else ()
        for graph in chain(kept, others):
            for result, vector in zip(results, vectors, strict=True):
                result.add_(problem.product(graph, vector), alpha=graph.images / images)
            del graph
        return results

    operator = HessianOperator(problem.dim, total.gradient / images, total.loss / images, images, products)
    _require_determinism(problem, operator)
    return operator


def rounding_errors(
    network: nn.Module, images: Tensor, labels: Tensor, loss: Objective, parameters: Sequence[nn.Parameter]
) -> Callable[[Tensor], Tensor]:
    """(k, dim) -> (k, dim), what rounding adds to the product of each row: that of the weights' dtype less
    the one in float64, for the loss over these images alone.
    """
    wide = copy.deepcopy(network).double()
    twins = dict(zip(network.parameters(), wide.parameters(), strict=True))
    problem = _problem(network, parameters, [(images, labels)], loss)
    double = _problem(wide, [twins[p] for p in parameters], [(images.double(), labels)], loss)
    (graph,), (exact,) = problem.graphs(), double.graphs()

    def errors(vectors: Tensor) -> Tensor:
        return torch.stack([problem.product(graph, v) - double.product(exact, v.double()) for v in vectors])

    return errors


def average(operators: Sequence[HessianOperator], weights: Sequence[float]) -> HessianOperator:
    """The weighted mean of operators over shards of the data; images as weights give the whole data's."""
    shares = [weight / sum(weights) for weight in weights]

    def mean(values: Iterable[Tensor]) -> Tensor:
        return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(0)

    return HessianOperator(
        dim=operators[0].dim,
        gradient=mean(operator.gradient for operator in operators),
        loss=sum(share * operator.loss for share, operator in zip(shares, operators, strict=True)),
        images=sum(operator.images for operator in operators),
        products=lambda vectors: mean(operator.products(vectors) for operator in operators),
    )


@dataclass(frozen=True, eq=False)
class _Graph:
    """The gradient (one tensor per parameter) of one batch's mean loss, still differentiable."""

    images: int
    loss: float
    gradient: tuple[Tensor, ...]


class _Total:
    """Sums over images, in the order of the batches."""

    def __init__(self, dim: int, like: Tensor) -> None:
        self.batches, self.images, self.loss = 0, 0, 0.0
        self.gradient = like.new_zeros(dim)

    def add(self, graph: _Graph) -> None:
        self.batches += 1
        self.images += graph.images
        self.loss += graph.images * graph.loss
        self.gradient.add_(_flat(graph.gradient).detach(), alpha=graph.images)


@dataclass(frozen=True, eq=False)
class _Problem:
    network: nn.Module
    weights: dict[str, Tensor]
    batches: Batches
    loss: Objective

    @property
    def variables(self) -> list[Tensor]:
        return [weight for weight in self.weights.values() if weight.requires_grad]

    @property
    def dim(self) -> int:
        return sum(variable.numel() for variable in self.variables)

    def graphs(self, skip: int = 0) -> Iterator[_Graph]:
        for images, labels in islice(self.batches, skip, None):
            yield self._graph(images, labels)

    def _graph(self, images: Tensor, labels: Tensor) -> _Graph:
        with _FastSecondDerivatives():
            logits = functional_call(self.network, self.weights, (images,))
        loss = self.loss(logits, labels)
        gradient = grad(loss, self.variables, create_graph=True, materialize_grads=True)
        return _Graph(len(images), loss.item(), gradient)

    def product(self, graph: _Graph, vector: Tensor) -> Tensor:
        variables = self.variables
        pieces = vector.split([variable.numel() for variable in variables])
        seeds = [piece.view_as(variable) for piece, variable in zip(pieces, variables, strict=True)]
        return _flat(grad(graph.gradient, variables, seeds, retain_graph=True, materialize_grads=True))

    def bytes_of_a_graph(self) -> int:
        """Bytes of the distinct tensors that the first batch's graph holds on to."""
        held: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # with its history, an output would keep its own graph alive

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            first = next(self.graphs(), None)
        if first is None:
            raise ConfigError("curvature: there are no images to measure it on")
        return sum(held.values())


def _problem(
    network: nn.Module, parameters: Sequence[nn.Parameter], batches: Batches, loss: Objective
) -> _Problem:
    """The derivatives by these of the network's parameters."""
    chosen = {id(p) for p in parameters}
    weights = {name: p.detach().requires_grad_(id(p) in chosen) for name, p in network.named_parameters()}
    return _Problem(network, weights, batches, loss)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _require_eval(network: nn.Module) -> None:
    training = {name or "the network": module for name, module in network.named_modules() if module.training}
    if training:
        name, module = list(training.items())[-1]  # the innermost: the network itself comes first
        raise ConfigError(
            f"curvature: {name} ({type(module).__name__}) is in training mode, where batch norm depends on "
            "the other images of a batch and dropout on chance; call network.eval() first"
        )


def _require_determinism(problem: _Problem, operator: HessianOperator) -> None:
    """The data read again give the same gradient, products repeat, and the operator is symmetric."""
    if not operator.gradient.isfinite().all():
        raise ConfigError("curvature: the gradient at these weights is not finite; the training diverged")
    again = _Total(operator.dim, operator.gradient)
    for graph in problem.graphs():
        again.add(graph)
    if again.images != operator.images or not torch.equal(
        again.gradient / max(again.images, 1), operator.gradient
    ):
        raise ConfigError(
            "curvature: two passes over the data give different gradients. Pass fixed batches (a list, "
            "not a generator, no shuffling or augmentation), switch off everything random in the network, "
            "and on a GPU call torch.use_deterministic_algorithms(True)"
        )
    draws = torch.randn(2, operator.dim, generator=stream(0, "curvature-check"))
    u, v = draws.to(operator.gradient)
    hu, hv = operator.products(torch.stack([u, v]))
    if not torch.equal(operator.matvec(v), hv):
        raise ConfigError(
            "curvature: two products with the same vector differ; on a GPU call "
            "torch.use_deterministic_algorithms(True)"
        )
    gap = abs(torch.dot(u, hv) - torch.dot(v, hu))
    if gap > SYMMETRY * (u.norm() * hv.norm() + v.norm() * hu.norm()):
        raise ConfigError(
            f"curvature: the second derivative is not symmetric (<u, Hv> and <v, Hu> differ by {gap:.1e}); "
            "an operation in the network or the loss has a wrong second derivative"
        )


class _FastSecondDerivatives(TorchFunctionMode):
    """Computes convolutions and eval-mode batch norm by operations with a cheaper second derivative, and
    attention and the hard sigmoid by ones that have a second derivative at all.

    The function computed is the same up to rounding. torch differentiates `convolution_backward` by
    transposed convolutions with the batch in the place of the channels, and a batch norm in eval mode,
    which is an affine map, as if it were the general one. That of a convolution's output becomes a part of
    the convolution's weight: sums over images in float32 would round ten times more.
    """

    def __init__(self) -> None:
        super().__init__()
        # The output of the last convolution without bias; its images, weight and geometry.
        self._convolution: tuple[Any, ...] = (None, None, None, None)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and len(args) == 7 and not isinstance(args[4], str):
            images, weight, bias, *geometry = args
            result = _Convolution.apply(images, weight, tuple(geometry))
            if bias is not None:
                return result + bias[:, None, None]
            self._convolution = result, images, weight, tuple(geometry)
            return result
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_attention_math(*args, **(kwargs or {}))[0]
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        if func is F.batch_norm:
            scale, shift = _affine(*args[1:], **(kwargs or {}))
            convolved, images, weight, geometry = self._convolution
            if args[0] is convolved:
                scaled = weight * scale.view(-1, 1, 1, 1)
                return _Convolution.apply(images, scaled, geometry) + shift[:, None, None]
            shape = (-1, *[1] * (args[0].dim() - 2))
            return torch.addcmul(shift.view(shape), args[0], scale.view(shape))
        return func(*args, **(kwargs or {}))


def _affine(
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """A batch norm's scale and shift of each channel."""
    if training:
        raise ConfigError("curvature: a batch norm without running statistics couples the images of a batch")
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    return scale, -mean * scale if bias is None else bias - mean * scale


class _Convolution(torch.autograd.Function):
    """conv2d without bias; geometry = (stride, padding, dilation, groups)."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, geometry: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry = geometry
        return F.conv2d(images, weight, None, *geometry)

    @staticmethod
    def backward(ctx: Any, out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        images, weight = ctx.saved_tensors
        return *_ConvolutionBackward.apply(out, images, weight, ctx.geometry, ctx.needs_input_grad[:2]), None


class _ConvolutionBackward(torch.autograd.Function):
    """(out, x, w) -> (gx, gw), the derivatives of <out, conv(x, w)>, those that are needed."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, images: Tensor, weight: Tensor, geometry: Any, needed: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(out, images, weight)
        ctx.geometry = geometry
        return _convolution_backward(out, images, weight, geometry, needed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None) -> tuple[Tensor | None, ...]:
        """The derivatives of <vx, gx> + <vw, gw> = <out, conv(vx, w) + conv(x, vw)>."""
        out, images, weight = ctx.saved_tensors
        terms = [
            F.conv2d(x, w, None, *ctx.geometry)
            for x, w in ((vx, weight), (images, vw))
            if not (x is None or w is None)
        ]
        by_images = by_weight = None
        if vx is not None and vw is not None:
            by_images, by_weight = _convolution_backward(out, vx, vw, ctx.geometry, (True, True))
        return sum(terms[1:], terms[0]), by_images, by_weight, None, None


def _convolution_backward(
    out: Tensor, images: Tensor, weight: Tensor, geometry: tuple[Any, ...], needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = geometry
    by_images, by_weight, _ = torch.ops.aten.convolution_backward(
        out, images, weight, None, stride, padding, dilation, False, (0, 0), groups, (*needed, False)
    )
    return by_images, by_weight
