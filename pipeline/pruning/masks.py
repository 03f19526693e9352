"""Pruning by masks: single weights, whole filters, and N:M patterns; the shapes stay, the weights are exact zeros."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.folding import batchnorm_after, copy_network
from pipeline.pruning.method import METHODS, Examples, Masks, Method, evaluating, prunable
from pipeline.registry import UserError


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


@dataclass(frozen=True)
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

    def prune(self, network, sparsity, examples):
        masks = self.masks(network, sparsity, examples)
        apply_masks(network, masks)
        return masks, []


# ---------------------------------------------------------------------------------------------- single weights


def erdos_renyi_kernel(shapes: dict[str, torch.Size], keep: int, minimum: int) -> dict[str, int]:
    """How many weights each layer keeps under ERK, exactly ``keep`` in all.

    A layer's density is proportional to (sum of its dimensions) / (product of its dimensions) and at most 1 (Evci et al.
    2020, "Rigging the Lottery", section 3; its released code caps in the same way), so a layer keeps a number
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


@dataclass(frozen=True)
class Unstructured(MaskMethod):
    """Removes the weights with the lowest score.

    scope: ``global`` (all layers compete), ``layer`` (the same share of each layer, rounded) or ``erk`` (per-layer shares of
    :func:`erdos_renyi_kernel`). minimum_per_layer: weights that every layer keeps, so that none dies.
    A subclass gives ``scores``; that is all a new criterion needs.
    """

    scope: str = "global"
    minimum_per_layer: int = 1

    def __post_init__(self) -> None:
        if self.scope not in ("global", "layer", "erk"):
            raise ValueError(f"scope '{self.scope}' is not one of global, layer, erk")
        if self.minimum_per_layer < 0:
            raise ValueError(f"minimum_per_layer {self.minimum_per_layer} is negative")

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
@dataclass(frozen=True)
class Magnitude(Unstructured):
    """The smallest absolute weights go (Han et al. 2015, "Learning both Weights and Connections")."""

    def scores(self, network, weights, examples):
        return {name: weight.detach().abs() for name, weight in weights.items()}
