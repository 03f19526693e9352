"""What every pruning method shares: which weights are prunable, the example data, and the call that prunes."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.folding import copy_network
from pipeline.pruning.schedules import Schedule
from pipeline.registry import Registry, UserError, nearest, options

Masks = dict[str, Tensor]  # parameter name -> bool tensor of the parameter's shape, True = kept

METHODS: Registry[Method] = Registry("pruning method")


@dataclass(frozen=True)
class Examples:
    """What a data-driven criterion may look at.

    images: [batch, channels, height, width] float, normalised as in training; labels: [batch] int64.
    seed: of every random choice that a method makes.
    """

    images: Tensor | None = None
    labels: Tensor | None = None
    seed: int = 0

    def to(self, device: torch.device) -> Examples:
        images, labels = (None if each is None else each.to(device) for each in (self.images, self.labels))
        return Examples(images, labels, self.seed)

    def need(self, reader: str, *, labels: bool = False) -> None:
        """Raises UserError when the method called ``reader`` was not given what it reads."""
        missing = "images" if self.images is None else "labels" if labels and self.labels is None else None
        if missing:
            raise UserError(f"{reader} reads example {missing}: pass {missing}= to prune()")


@dataclass(frozen=True)
class Pruned:
    """The result of :func:`prune`.

    network: a new module, truly sparse or truly smaller, in the mode (train or eval) of the one given.
    masks: of masked parameters; empty after physical removal.
    removed: JSON-able list for :func:`replay`; empty for masks.
    """

    network: nn.Module
    masks: Masks = field(default_factory=dict)
    removed: list[dict[str, Any]] = field(default_factory=list)


@options
class Method:
    """Options that all methods share: which layers may lose weights.

    First convolution and classifier are out by default, as is usual in the literature: they are small and losing them
    is costly. A layer is prunable if it matches one pattern of ``layers`` and none of ``exclude``.
    """

    grows: ClassVar[bool] = False  # whether a schedule may raise the sparsity while the network trains
    kinds: ClassVar[str] = "convolutions and linear layers"  # what `prunes` accepts, in words

    prune_first: Annotated[bool, Field(description="also the first convolution")] = False
    prune_classifier: Annotated[bool, Field(description="also the last layer")] = False
    layers: Annotated[
        str, Field(description="patterns of layer names, with commas between: layer1.*,layer2.*", min_length=1)
    ] = "*"
    exclude: Annotated[str, Field(description="patterns of layers that are left whole")] = ""

    def prunes(self, module: nn.Module) -> bool:
        """Whether the method acts on layers of this kind."""
        return isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention)

    @property
    def counted(self) -> str:
        """The weights that sparsity is a share of, in words."""
        kept_out = [
            what
            for what, inside in (("the first convolution", self.prune_first), ("the classifier", self.prune_classifier))
            if not inside
        ]
        words = f"weights of {self.kinds}" + (f" without {' and '.join(kept_out)}" if kept_out else "")
        words += f", in layers {self.layers}" if self.layers != "*" else ""
        return words + (f", except {self.exclude}" if self.exclude else "")

    def includes(self, layer: str) -> bool:
        """Whether the patterns let this layer in."""
        return matches(layer, self.layers) and not matches(layer, self.exclude)

    def check(self, network: nn.Module, sparsity: float, examples: Examples) -> None:
        """Raises UserError if the sparsity cannot be reached."""
        raise NotImplementedError

    def prune(
        self, network: nn.Module, sparsity: float, examples: Examples, previous: Masks | None, dense: nn.Module
    ) -> tuple[Masks, list[dict[str, Any]]]:
        """Prunes in place and returns (masks, removed) as in :class:`Pruned`; the rest as in :func:`prune`."""
        raise NotImplementedError


def matches(layer: str, patterns: str) -> bool:
    """Whether a layer's name matches one of the comma-separated glob patterns."""
    return any(fnmatch.fnmatchcase(layer, pattern.strip()) for pattern in patterns.split(","))


def weight_names(name: str, module: nn.Module) -> list[str]:
    """The parameters of a layer that count as weights: biases and norms never do."""
    attention = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    attributes = attention if isinstance(module, nn.MultiheadAttention) else ("weight",)
    return [f"{name}.{attribute}".lstrip(".") for attribute in attributes if getattr(module, attribute) is not None]


def prunable(network: nn.Module, method: Method) -> dict[str, nn.Parameter]:
    """The weights that the method may remove, by parameter name, in the network's order.

    Weights of Conv2d, Linear and the projections of MultiheadAttention, except by default the first convolution and the
    classifier (the last such layer). First and last are meant in the order in which the network registers its modules.
    *Sparsity* is the share of these weights that are gone, counted in the dense network.

    Raises:
        UserError: a pattern that matches no layer, or nothing left to prune.
    """
    everything = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention)
    }
    for option in ("layers", "exclude"):
        for pattern in filter(None, map(str.strip, getattr(method, option).split(","))):
            if not any(matches(name, pattern) for name in everything):
                raise UserError(f"{option}: '{pattern}' matches no layer; {nearest(pattern, everything)}")
    first = next((name for name, module in everything.items() if isinstance(module, nn.Conv2d)), None)
    kept_out = set()
    if not method.prune_first:
        kept_out.add(first)
    if not method.prune_classifier:
        kept_out.add(classifier(network))
    weights = {
        parameter: network.get_parameter(parameter)
        for name, module in everything.items()
        if name not in kept_out and method.prunes(module) and method.includes(name)
        for parameter in weight_names(name, module)
    }
    if not weights:
        raise UserError(
            f"{type(network).__name__} has nothing to prune with {method.name}:"
            " prune_first=true or prune_classifier=true would let in the first convolution and the classifier"
        )
    return weights


def classifier(network: nn.Module) -> str | None:
    """The name of the last Conv2d or Linear layer."""
    return next(
        (name for name, module in reversed(list(network.named_modules())) if isinstance(module, nn.Conv2d | nn.Linear)),
        None,
    )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode with every parameter differentiable; modes and flags are put back afterwards."""
    modes = {module: module.training for module in network.modules()}
    flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    try:
        with torch.enable_grad():
            yield network.eval().requires_grad_(True)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, parameter in network.named_parameters():  # by name: removal replaces the parameters
            parameter.requires_grad_(flags[name])


def refuse_sparsity(sparsity: float) -> None:
    """Raises UserError outside [0, 1)."""
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity {sparsity} is outside [0, 1): it is the share of weights that are gone")


def prune(
    network: nn.Module,
    method: Method | str | Mapping[str, Any],
    sparsity: float,
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
    previous: Masks | None = None,
    dense: nn.Module | None = None,
) -> Pruned:
    """Prunes a copy of a network; the argument is left as it was.

    Sparsity 0 is the identity for every method. In a later round of iterative pruning pass what the round before left:
    its masks as ``previous``, or the network that the first round started from as ``dense``; ``sparsity`` is always
    counted against the dense network.

    Args:
        method: itself, its name, or a mapping of name and options as in a configuration.
        sparsity: share of the prunable weights to remove, in [0, 1); see :func:`prunable`.
        images: [batch, channels, height, width] normalised examples. Needed by data-driven criteria, by filter masks
            (to find each filter's BatchNorm) and by physical removal (to trace the network).
        labels: [batch]; needed by criteria that use gradients.
        seed: of criteria that draw random numbers.
        previous: masks of an earlier round; what they removed stays removed.
        dense: the network before any physical removal, if ``network`` is smaller already. ``Pruned.removed`` holds this
            round's removals only: append them to the earlier ones for :func:`replay`.

    Raises:
        UserError: an unknown method, the sparsity cannot be reached, nothing is prunable, or examples are missing.
    """
    refuse_sparsity(sparsity)
    if not isinstance(method, Method):
        method = METHODS.build(method, "method")
    result = copy_network(network)
    device = next(result.parameters()).device
    examples = Examples(images, labels, seed).to(device)
    masks, removed = method.prune(result, sparsity, examples, previous, network if dense is None else dense)
    return Pruned(result, masks, removed)


def refuse_schedule(method: Method, schedule: Schedule) -> None:
    """Raises UserError if the schedule lets the sparsity grow during training and the method cannot follow."""
    if schedule.grows and not method.grows:
        raise UserError(
            f"{method.name} cannot follow the schedule {schedule.name}: only masks over weights or filters can grow"
            " while the network trains; use one_shot or iterative"
        )


def check(
    network: nn.Module, method: Method, sparsity: float, example: Tensor, *, schedule: Schedule | None = None
) -> None:
    """Raises UserError, before any training, if ``method`` cannot bring such a network to ``sparsity``.

    The weights' values play no part, so a freshly built network will do.

    Args:
        example: [batch, channels, height, width]; only its shape matters.
        schedule: also checks every sparsity that it passes through, if given.
    """
    refuse_sparsity(sparsity)
    prunable(network, method)
    device = next(network.parameters()).device
    targets = [sparsity]
    if schedule is not None:
        refuse_schedule(method, schedule)
        targets = schedule.rounds(sparsity)
    for target in targets:
        method.check(network, target, Examples(example).to(device))
