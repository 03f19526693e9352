"""Pruning by masks: single weights, whole filters, and N:M patterns; the shapes stay, the weights are exact zeros."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from pipeline.folding import batchnorm_after
from pipeline.pruning.method import METHODS, Examples, Masks, Method, evaluating, prunable
from pipeline.registry import Refused, UserError, options


def apply_masks(network: nn.Module, masks: Masks) -> None:
    """Sets every masked weight to zero, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = network.get_parameter(name)
            parameter.mul_(mask.to(parameter))


def smallest(scores: Tensor, count: int) -> Tensor:
    """A bool tensor of the shape of ``scores``, True at exactly ``count`` smallest; the earlier of equal scores first.

    A selection, not a sort; unlike ``torch.topk`` it settles ties in the same way on every device.
    """
    flat = scores.flatten()
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(count).values
    chosen = flat < threshold
    ties = (flat == threshold).nonzero().flatten()[: count - int(chosen.sum())]
    chosen[ties] = True
    return chosen.view(scores.shape)


@options
class MaskMethod(Method):
    """A method whose result is masks."""

    def counts(self, weights: dict[str, Tensor], sparsity: float) -> dict[str, int] | int:
        """How many weights go: per layer, or one number where layers compete with each other."""
        raise NotImplementedError

    def masks(self, network: nn.Module, sparsity: float, examples: Examples, previous: Masks | None = None) -> Masks:
        """Masks for ``network`` as it is now, not yet applied; what ``previous`` removed stays removed."""
        raise NotImplementedError

    def removed_count(self, network: nn.Module, sparsity: float) -> int:
        """Exactly how many of the prunable weights are gone at this sparsity."""
        counts = self.counts(prunable(network, self), sparsity)
        return counts if isinstance(counts, int) else sum(counts.values())

    def check(self, network: nn.Module, sparsity: float, examples: Examples) -> None:
        self.counts(prunable(network, self), sparsity)

    def prune(self, network, sparsity, examples, previous, dense):
        if previous is not None:
            previous = {name: mask.to(network.get_parameter(name).device) for name, mask in previous.items()}
        masks = self.masks(network, sparsity, examples, previous)
        apply_masks(network, masks)
        return masks, []


# ---------------------------------------------------------------------------------------------- gradients


def gradients_of(loss: Tensor, weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The loss's gradient for each weight; zeros for one that the forward pass did not use."""
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(weights, found, strict=True))


def mean_gradients(
    network: nn.Module, weights: dict[str, nn.Parameter], examples: Examples, reader: str
) -> dict[str, Tensor]:
    """The gradient of the mean cross-entropy over the examples."""
    examples.need(reader, labels=True)
    loss = cross_entropy(network(examples.images), examples.labels)
    return gradients_of(loss, weights)


def squared_gradients(
    network: nn.Module, weights: dict[str, nn.Parameter], examples: Examples, reader: str
) -> dict[str, Tensor]:
    """The squared gradient of each example's cross-entropy, averaged over examples: the diagonal empirical Fisher."""
    examples.need(reader, labels=True)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for image, label in zip(examples.images.split(1), examples.labels.split(1), strict=True):
        for name, gradient in gradients_of(cross_entropy(network(image), label), weights).items():
            total[name].addcmul_(gradient, gradient, value=1 / len(examples.labels))
    return total


# ---------------------------------------------------------------------------------------------- single weights


def erdos_renyi_kernel(shapes: dict[str, torch.Size], keep: int, minimum: int) -> dict[str, int]:
    """How many weights each layer keeps under ERK, exactly ``keep`` in all.

    A layer's density is proportional to (sum of its dimensions) / (product of its dimensions) and at most 1 (Evci et
    al. 2020, "Rigging the Lottery", section 3; its released code caps in the same way), so a layer keeps a number
    proportional to the sum of its dimensions; here never less than ``minimum`` either.
    """
    share = {name: float(sum(shape)) for name, shape in shapes.items()}
    size = {name: shape.numel() for name, shape in shapes.items()}

    def kept(scale: float) -> dict[str, float]:
        return {n: min(max(scale * share[n], min(minimum, size[n])), size[n]) for n in shapes}

    low, high = 0.0, max(size[n] / share[n] for n in shapes)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(kept(middle).values()) < keep else (low, middle)
    exact = kept(high)
    whole = {name: math.floor(value + 1e-6) for name, value in exact.items()}
    missing = keep - sum(whole.values())
    order = sorted((n for n in shapes if whole[n] < size[n]), key=lambda n: whole[n] - exact[n])
    for name in order[:missing]:  # the largest fractions are rounded up, so that the sum is exact
        whole[name] += 1
    return whole


@options
class Unstructured(MaskMethod):
    """Removes the weights with the lowest score.

    scope: ``global`` (all layers compete), ``layer`` (the same share of each layer, rounded) or ``erk`` (per-layer
    shares of :func:`erdos_renyi_kernel`). minimum_per_layer: weights that every layer keeps, so that none dies.
    A subclass gives ``scores``; that is all a new criterion needs.
    """

    grows: ClassVar[bool] = True

    scope: Annotated[
        Literal["global", "layer", "erk"],
        Field(description="all layers compete, the same share of each layer, or the shares of Erdos-Renyi-Kernel"),
    ] = "global"
    minimum_per_layer: Annotated[
        int, Field(description="weights that every layer keeps, so that none dies", ge=0, le=1_000_000_000)
    ] = 1

    def scores(self, network: nn.Module, weights: dict[str, nn.Parameter], examples: Examples) -> dict[str, Tensor]:
        """A score per weight, in the weight's shape; the lowest are removed. ``network`` is in eval mode."""
        raise NotImplementedError

    def counts(self, weights, sparsity):
        size = {name: weight.numel() for name, weight in weights.items()}
        floor = {name: min(self.minimum_per_layer, count) for name, count in size.items()}
        if self.scope == "layer":
            counts = {name: round(sparsity * count) for name, count in size.items()}
            for name, count in counts.items():
                if sparsity and size[name] - count < max(floor[name], 1):
                    raise UserError(
                        f"sparsity {sparsity} would leave {size[name] - count} of the {size[name]} weights of {name}"
                        f" (minimum_per_layer is {self.minimum_per_layer}): ask for less or use scope global"
                    )
            return counts
        total = sum(size.values())
        count = round(sparsity * total)
        if sparsity and total - count < max(sum(floor.values()), 1):
            raise UserError(
                f"sparsity {sparsity} would leave {total - count} weights for {len(size)} layers, the first being"
                f" {next(iter(size))}: less than minimum_per_layer={self.minimum_per_layer} in each; ask for less"
            )
        if self.scope == "erk":
            shapes = {name: weight.shape for name, weight in weights.items()}
            kept = erdos_renyi_kernel(shapes, total - count, self.minimum_per_layer)
            return {name: size[name] - kept[name] for name in size}
        return count

    def masks(self, network, sparsity, examples, previous=None):
        weights = prunable(network, self)
        counts = self.counts(weights, sparsity)
        if sparsity == 0:
            return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        with evaluating(network):
            scores = self.scores(network, weights, examples)
        scores = {name: scores[name].detach().float().clone(memory_format=torch.contiguous_format) for name in weights}
        for name, score in scores.items():
            if not torch.isfinite(score).all():
                raise UserError(f"{self.name}: the scores of {name} are not finite; did the network diverge?")
            if previous is not None:
                score.masked_fill_(~previous[name], -math.inf)
        if isinstance(counts, dict):
            return {name: ~smallest(scores[name], counts[name]) for name in weights}
        for score in scores.values():  # the best few of every layer cannot be outdone by another layer's
            best = min(self.minimum_per_layer, score.numel())
            score.view(-1)[score.flatten().topk(best).indices] = math.inf
        chosen = smallest(torch.cat([score.flatten() for score in scores.values()]), counts)
        parts = chosen.split([weight.numel() for weight in weights.values()])
        return {name: ~part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


@METHODS.register("magnitude")
@options
class Magnitude(Unstructured):
    """The smallest absolute weights go (Han et al. 2015, "Learning both Weights and Connections")."""

    def scores(self, network, weights, examples):
        return {name: weight.detach().abs() for name, weight in weights.items()}


@METHODS.register("random")
@options
class Random(Unstructured):
    """Random weights go: the control that every criterion must beat."""

    def scores(self, network, weights, examples):
        generator = torch.Generator().manual_seed(examples.seed)  # on the CPU: the same weights go on every device
        # negative, so that the largest draw goes first, as in torch.nn.utils.prune.RandomUnstructured
        return {name: -torch.rand(w.shape, generator=generator).to(w.device) for name, w in weights.items()}


@METHODS.register("lamp")
@options
class LAMP(Unstructured):
    """Layer-adaptive magnitude (Lee et al. 2021, equation 2): w^2 over the sum of all v^2 in the layer with v^2 >= w^2.

    With scope ``global``, as in the paper; within one layer the order is that of magnitude.
    """

    def scores(self, network, weights, examples):
        scores = {}
        for name, weight in weights.items():
            ordered, order = weight.detach().flatten().double().square().sort(stable=True)
            from_here_up = ordered.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)
            scores[name] = torch.empty_like(ordered).scatter_(0, order, ordered / from_here_up).view(weight.shape)
        return scores


@METHODS.register("snip")
@options
class SNIP(Unstructured):
    """|w dL/dw| with the gradient of the mean loss (Lee et al. 2019, equation 6; its normalisation changes no
    order).
    """

    def scores(self, network, weights, examples):
        gradients = mean_gradients(network, weights, examples, self.name)
        return {name: (weight.detach() * gradients[name]).abs() for name, weight in weights.items()}


@METHODS.register("taylor")
@options
class Taylor(Unstructured):
    """(w dL/dw)^2 averaged over single examples (Molchanov et al. 2019, equation 8, applied to weights).

    The square is taken before the mean, so that examples that pull in opposite directions do not cancel, as in SNIP.
    """

    def scores(self, network, weights, examples):
        squares = squared_gradients(network, weights, examples, self.name)
        return {name: weight.detach().square() * squares[name] for name, weight in weights.items()}


@METHODS.register("grasp")
@options
class GraSP(Unstructured):
    """Keeps the gradient flow: score w * (H g), the lowest go (Wang et al. 2020, equation 8, whose -w * (H g) is high
    for what goes).

    Made for networks before training. The temperature is that of the released code.
    """

    temperature: Annotated[float, Field(description="divides the logits", gt=0, le=1e6)] = 200.0

    def scores(self, network, weights, examples):
        examples.need(self.name, labels=True)
        parameters = list(weights.values())
        loss = cross_entropy(network(examples.images) / self.temperature, examples.labels)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        flow = sum((gradient * gradient.detach()).sum() for gradient in gradients)  # its gradient is H g
        products = torch.autograd.grad(flow, parameters)
        return {name: weights[name].detach() * product for name, product in zip(weights, products, strict=True)}


@METHODS.register("movement")
@options
class Movement(Unstructured):
    """Weights that training moves towards zero go: minus the sum over steps of w dL/dw (Sanh et al. 2020, equation 4).

    ``steps`` steps of SGD with ``learning_rate`` on batches of ``batch_size`` drawn from the examples, BatchNorm
    statistics fixed, move a copy of the weights; the scores add up on the way, the network keeps its own.
    """

    steps: Annotated[int, Field(description="of SGD", ge=1, le=1_000_000)] = 20
    batch_size: Annotated[int, Field(description="examples in a step", ge=1, le=1_000_000)] = 32
    learning_rate: Annotated[float, Field(description="of these steps", gt=0, le=1e6)] = 0.01

    def scores(self, network, weights, examples):
        examples.need(self.name, labels=True)
        # Not a copy of the network: under a gradual schedule it carries the hooks of whoever trains it.
        moving = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
        scores = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        generator = torch.Generator().manual_seed(examples.seed)
        for _ in range(self.steps):
            drawn = torch.randperm(len(examples.labels), generator=generator)[: self.batch_size]
            drawn = drawn.to(examples.labels.device)
            logits = functional_call(network, moving, (examples.images[drawn],))
            gradients = gradients_of(cross_entropy(logits, examples.labels[drawn]), moving)
            with torch.no_grad():
                for name, weight in moving.items():
                    scores[name].sub_(weight * gradients[name])
                    weight.sub_(self.learning_rate * gradients[name])
        return scores


# ---------------------------------------------------------------------------------------------- filters and patterns


@METHODS.register("filters")
@options
class Filters(MaskMethod):
    """The same share of each convolution's filters goes, those with the smallest norm (Li et al. 2017; L1 in the
    paper).

    batchnorm also masks the filter's bias and its BatchNorm's scale and shift, so that nothing is left of it. Without,
    a removed filter still sends a constant forward: its weights are gone, its BatchNorm shift is not.
    """

    grows: ClassVar[bool] = True
    kinds: ClassVar[str] = "convolutions"

    norm: Annotated[Literal[1, 2], Field(description="L1 or L2")] = 1
    batchnorm: Annotated[bool, Field(description="also mask what BatchNorm adds to a removed filter")] = True
    minimum_per_layer: Annotated[int, Field(description="filters that every convolution keeps", ge=1, le=1_000_000)] = 1

    def prunes(self, module):
        return isinstance(module, nn.Conv2d)

    def filters(self, weights: dict[str, Tensor], sparsity: float) -> dict[str, int]:
        """How many filters each convolution loses."""
        lost = {name: round(sparsity * len(weight)) for name, weight in weights.items()}
        for name, count in lost.items():
            if count and len(weights[name]) - count < self.minimum_per_layer:
                raise UserError(
                    f"sparsity {sparsity} would leave {len(weights[name]) - count} of the {len(weights[name])} filters"
                    f" of {name} (minimum_per_layer is {self.minimum_per_layer}): ask for less"
                )
        return lost

    def counts(self, weights, sparsity):
        return {name: lost * weights[name][0].numel() for name, lost in self.filters(weights, sparsity).items()}

    def masks(self, network, sparsity, examples, previous=None):
        weights = prunable(network, self)
        lost = self.filters(weights, sparsity)
        masks = {}
        for name, weight in weights.items():
            scores = torch.linalg.vector_norm(weight.detach().flatten(1).float(), ord=self.norm, dim=1)
            if not torch.isfinite(scores).all():
                raise UserError(f"{self.name}: the weights of {name} are not finite; did the network diverge?")
            if previous is not None:
                scores.masked_fill_(~previous[name].flatten(1).any(1), -1.0)
            gone = smallest(scores, lost[name])
            masks[name] = (~gone).view(-1, 1, 1, 1).expand_as(weight).contiguous()
        if sparsity and self.batchnorm:
            for name, companions in self.companions(network, list(weights), examples).items():
                for companion in companions:
                    masks[companion] = masks[name][:, 0, 0, 0].clone()
        return masks

    def companions(self, network: nn.Module, weights: list[str], examples: Examples) -> dict[str, list[str]]:
        """For each convolution's weight, the names of its bias and of its BatchNorm's scale and shift."""
        norms = {}
        if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            examples.need(self.name)
            norms = batchnorm_after(network, examples.images[:2])
        known = dict(network.named_parameters())
        result = {}
        for name in weights:
            layer = name.removesuffix(".weight")
            candidates = [f"{layer}.bias"]
            if layer in norms:
                if f"{norms[layer]}.bias" not in known:
                    raise UserError(f"{norms[layer]} has no scale and shift to mask: use batchnorm=false")
                candidates += [f"{norms[layer]}.weight", f"{norms[layer]}.bias"]
            result[name] = [candidate for candidate in candidates if candidate in known]
        return result


@METHODS.register("n_m")
@options
class NM(MaskMethod):
    """N:M sparsity: of every ``m`` consecutive input weights the ``n`` largest stay (Mishra et al. 2021; 2:4 by
    default).

    Consecutive means along the input channels of one output, at the same place of the kernel, which is what the
    hardware multiplies. The pattern sets the sparsity, 1 - n / m: asking for another (but 0) is an error.
    """

    n: Annotated[int, Field(description="weights that stay", ge=1, le=1_000_000)] = 2
    m: Annotated[int, Field(description="weights in a row", ge=2, le=1_000_000)] = 4

    def __post_init__(self) -> None:
        if self.n >= self.m:
            raise Refused("n", f"{self.n} is refused; give less than m, which is {self.m}")

    def counts(self, weights, sparsity):
        if sparsity == 0:
            return dict.fromkeys(weights, 0)
        if abs(sparsity - (1 - self.n / self.m)) > 1e-6:
            raise UserError(f"{self.n}:{self.m} has sparsity {1 - self.n / self.m:.6g}, not {sparsity}: ask for that")
        for name, weight in weights.items():
            if weight.shape[1] % self.m:
                raise UserError(
                    f"{name} has {weight.shape[1]} inputs per output, not a multiple of m={self.m}:"
                    f" leave it out with exclude={name.removesuffix('.weight')}"
                )
        return {name: weight.numel() // self.m * (self.m - self.n) for name, weight in weights.items()}

    def masks(self, network, sparsity, examples, previous=None):
        weights = prunable(network, self)
        self.counts(weights, sparsity)
        if sparsity == 0:
            return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        masks = {}
        for name, weight in weights.items():
            inputs_last = weight.detach().abs().movedim(1, -1)
            runs = inputs_last.reshape(-1, self.m)
            best = runs.argsort(dim=1, descending=True, stable=True)[:, : self.n]
            kept = torch.zeros_like(runs, dtype=torch.bool).scatter_(1, best, True)
            masks[name] = kept.view(inputs_last.shape).movedim(-1, 1).contiguous()
        return masks
