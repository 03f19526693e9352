"""Physical removal of channels: torch-pruning finds what hangs together, the choice and the search are ours.

A group is what must lose a channel together (a convolution's filter, its BatchNorm, the inputs of every reader, across
residual additions). All candidate removals of a network are put in one order; a prefix of that order is a pruned
network, its weights and MACs can be counted without making it, and so the prefix that meets the target is found exactly
and the network is cut once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch_pruning
from pydantic import Field
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from pipeline.folding import copy_network
from pipeline.pruning.masks import mean_gradients, squared_gradients
from pipeline.pruning.method import METHODS, Examples, Method, classifier, evaluating, prunable, weight_names
from pipeline.registry import UserError, options

TOLERANCE = 0.02  # how far from the target the result may be
LAYERS = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)


def trace(network: nn.Module, example: Tensor) -> torch_pruning.DependencyGraph:
    """torch-pruning's dependency graph of a network that is in eval mode with gradients enabled.

    Raises:
        UserError: the network cannot be traced, or has layers that do not run in eval mode.
    """
    kind = type(network).__name__
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(
            network, example[:1], forward_fn=lambda module, images: module(images), verbose=False
        )
    except Exception as error:
        raise UserError(f"torch-pruning cannot trace {kind} ({type(error).__name__}: {error}): use masks") from error
    inside = {each.out_proj for each in network.modules() if isinstance(each, nn.MultiheadAttention)}
    for name, module in network.named_modules():
        if isinstance(module, LAYERS) and module not in graph.module2node and module not in inside:
            raise UserError(
                f"{name} of {kind} does not run in eval mode as a module, so its shape would not follow the rest:"
                " build the network without it (auxiliary classifiers: aux_logits=false) or use masks"
            )
    return graph


def cut(group: torch_pruning.Group) -> None:
    """Removes the channels of a group from its layers, in place.

    torch-pruning 1.6.0 takes the kept channels of a LayerNorm from an unsorted set, which permutes them against every
    other layer when few are left; so a LayerNorm's parameters are taken again, in order.
    """
    norms = [(dep.target.module, idxs) for dep, idxs in group if isinstance(dep.target.module, nn.LayerNorm)]
    before = {norm: {name: value.detach() for name, value in norm.named_parameters()} for norm, _ in norms}
    group.prune()
    for norm, idxs in norms:
        for name, value in before[norm].items():
            kept = sorted(set(range(len(value))) - set(idxs))
            setattr(norm, name, nn.Parameter(value[kept]))


def settle(network: nn.Module) -> None:
    """Brings plain attributes that repeat a width in line with the layers."""
    for module in network.modules():
        if isinstance(module, VisionTransformer):  # torchvision reshapes the patches by this number
            module.hidden_dim = module.conv_proj.out_channels


def replay(network: nn.Module, removed: list[dict[str, Any]], example: Tensor) -> None:
    """Applies a stored removal to a freshly built dense network, in place, so that the saved weights fit.

    Args:
        removed: ``Pruned.removed``; its entries are applied in order, channel numbers are those at that moment.
        example: [batch, channels, height, width], for tracing; only its shape matters.

    Raises:
        UserError: the removal belongs to another architecture.
    """
    if not removed:
        return
    with evaluating(network):
        graph = trace(network, example)
        for entry in removed:
            layer, channels = entry["layer"], entry["channels"]
            module = dict(network.named_modules()).get(layer)
            width = graph.get_out_channels(module) if isinstance(module, LAYERS) else 0
            if not width or max(channels) >= width:
                raise UserError(
                    f"the stored removal takes channel {max(channels)} of layer {layer}, which has {width} in this"
                    f" {type(network).__name__}: build the network with the options it was pruned with"
                )
            cut(graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, list(channels)))
        settle(network)


class Group:
    """One torch-pruning group: in which order its channels would go, and what each step takes from each layer.

    units: lists of root channels that go together (one channel; with grouped convolutions, GroupNorm or attention
    heads, the same position of every part). part: how many units there are; width: channels in each.
    coupled: torch-pruning's group, with every channel in it; writers: the layers whose outputs these channels are.
    """

    def __init__(self, group: torch_pruning.Group, graph: torch_pruning.DependencyGraph) -> None:
        self.coupled = group
        self.channels = len(group[0].idxs)
        parts = math.lcm(1, *(channel_groups(dep.target.module) for dep, _ in group))
        self.part = self.channels // parts if self.channels % parts == 0 else 0  # 0: cannot be cut evenly, stays whole
        self.width = parts
        self.name = graph._module2name[group[0].dep.target.module]
        self.writers = [
            dep.target.module
            for dep, _ in group
            if isinstance(dep.target.module, LAYERS) and graph.is_out_channel_pruning_fn(dep.handler)
        ]
        self.signature = " ".join(
            f"{type(dep.target.module).__name__}:{graph.is_out_channel_pruning_fn(dep.handler)}" for dep, _ in group
        )

    def rank(self, importance: Tensor, graph: torch_pruning.DependencyGraph) -> None:
        """Orders the units by importance and notes, for each layer touched, what is gone after each step."""
        scores = importance.detach().double().cpu().view(-1, self.part).mean(0).numpy()
        order = np.argsort(scores, kind="stable")
        self.scores = scores[order]
        self.units = [list(range(unit, self.channels, self.part)) for unit in order]
        step = np.empty(self.channels, dtype=np.int64)  # at which step each root channel goes, from 1
        for number, unit in enumerate(self.units, start=1):
            step[unit] = number
        self.gone: dict[tuple[nn.Module, str], np.ndarray] = {}
        for item in self.coupled:
            module = item.dep.target.module
            if isinstance(module, LAYERS):
                per_step = np.bincount(step[item.root_idxs], minlength=len(self.units) + 1)
                for end in ends(item.dep, graph):
                    self.gone[end] = self.gone.get(end, 0) + np.cumsum(per_step)

    def rounded(self, lost: int, round_to: int) -> int:
        """The number of units that may go, up to ``lost``, such that the width left is a multiple of ``round_to``."""
        step = round_to // math.gcd(round_to, self.width)
        left = -(-(len(self.units) - lost) // step) * step
        return max(0, len(self.units) - left)


def channel_groups(module: nn.Module) -> int:
    """Into how many equal parts the channels of a layer fall that must stay equally wide."""
    if isinstance(module, nn.Conv2d):
        return 1 if module.groups == module.out_channels else module.groups
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    return module.num_heads if isinstance(module, nn.MultiheadAttention) else 1


def ends(dep: Any, graph: torch_pruning.DependencyGraph) -> list[tuple[nn.Module, str]]:
    """Which dimensions of which weights an operation shortens: a layer and ``out`` or ``in``."""
    module = dep.target.module
    if isinstance(module, nn.MultiheadAttention):  # the projections and the width of the residual stream go together
        return [(module, "out"), (module, "in"), (module.out_proj, "out"), (module.out_proj, "in")]
    if isinstance(module, nn.Conv2d) and module.groups == module.out_channels > 1:
        return [(module, "out")]  # depthwise: one input per filter, whatever the width
    return [(module, "out" if graph.is_out_channel_pruning_fn(dep.handler) else "in")]


@dataclass(frozen=True)
class Layer:
    """What is needed to count a layer's weights and MACs at any width.

    positions: how often the weights are applied to one image (pixels of the output, tokens).
    counted: whether the weights count towards sparsity.
    """

    module: nn.Module
    positions: int
    counted: bool

    def size(self, gone: dict[tuple[nn.Module, str], int], *, macs: bool) -> int:
        """Weights, or multiply-accumulates per image, once the channels in ``gone`` are removed."""
        outputs, inputs = (self.module.in_proj_weight if self.attention else self.module.weight).shape[:2]
        taken_out, taken_in = gone.get((self.module, "out"), 0), gone.get((self.module, "in"), 0)
        if self.attention:
            width = inputs - taken_in
            # scores and weighted sums read every pair of tokens; the output projection is a layer of its own
            return self.positions * (3 * width**2 + 2 * self.positions * width) if macs else 3 * width**2
        groups, kernel = 1, 1
        if isinstance(self.module, nn.Conv2d):
            groups, kernel = self.module.groups, math.prod(self.module.kernel_size)
        weights = (outputs - taken_out) * (inputs - taken_in // groups) * kernel
        return weights * self.positions if macs else weights

    @property
    def attention(self) -> bool:
        return isinstance(self.module, nn.MultiheadAttention)


def describe(network: nn.Module, example: Tensor, counted: set[str]) -> list[Layer]:
    """Every layer with weights, with its positions from one run on one image."""
    positions: dict[nn.Module, int] = {}

    def hook(module, _inputs, output):
        if isinstance(module, nn.MultiheadAttention):
            positions[module] = positions[module.out_proj] = output[0].shape[-2]
        else:
            positions[module] = output.numel() // module.weight.shape[0]

    handles = [m.register_forward_hook(hook) for m in network.modules() if isinstance(m, LAYERS)]
    try:
        with evaluating(network), torch.no_grad(), fused_attention(False):
            network(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return [
        Layer(module, positions[module], any(weight in counted for weight in weight_names(name, module)))
        for name, module in network.named_modules()
        if isinstance(module, LAYERS)
    ]


@contextmanager
def fused_attention(enabled: bool) -> Iterator[None]:
    """Whether PyTorch may replace a whole encoder layer by one call that runs no module inside it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@options
class Removal(Method):
    """Physical removal of whole channels, with everything that reads or writes them.

    scope: ``uniform`` (the same share of every group), ``global`` (all groups compete) or ``isomorphic`` (groups of
    equal structure compete; Fang et al. 2024, "Isomorphic Pruning").
    target: what the number asked for is a share of: ``weights`` (sparsity, as everywhere else), ``macs`` or
    ``channels``. The sparsity reached is a matter of measurement in each case. A share of channels is not a sparsity:
    half of the channels of a ResNet-18 are 71 % of its weights.
    round_to: a layer of another width, or too narrow, stays whole or goes only as far as the next multiple.

    The first convolution may lose filters even when its weights do not count (``prune_first``), because residual
    additions tie them to later layers; the classifier never loses outputs. A subclass gives ``importance``.
    """

    scope: Annotated[
        Literal["uniform", "global", "isomorphic"],
        Field(description="the same share of every group, all compete, or groups of equal structure compete"),
    ] = "uniform"
    target: Annotated[
        Literal["weights", "macs", "channels"], Field(description="what the number asked for is a share of")
    ] = "weights"
    minimum_channels: Annotated[int, Field(description="stay in every layer", ge=1, le=1_000_000)] = 1
    round_to: Annotated[int, Field(description="widths stay multiples of this", ge=1, le=1_000_000)] = 1

    def prepare(self, network: nn.Module, examples: Examples) -> None:
        """Fills ``.grad`` of the parameters, where ``importance`` reads it."""

    def importance(self, group: Group, examples: Examples) -> Tensor | None:
        """A score per channel of the group, [channels], the lowest go first; None leaves the group whole."""
        raise NotImplementedError

    def check(self, network, sparsity, examples):
        if sparsity == 0:
            return
        examples.need(self.name)
        copied = copy_network(network)
        with evaluating(copied):
            graph = trace(copied, examples.images)
            groups = self.groups(copied, graph)
            for group in groups:  # any even order will do: what can be reached hardly depends on it
                group.rank((torch.arange(group.channels) + 0.5) / group.channels, graph)
            self.search(copied, groups, sparsity, examples.images, copied)

    def prune(self, network, sparsity, examples, previous, dense):
        if sparsity == 0:
            return {}, []
        examples.need(self.name)
        channels_last = any(p.dim() == 4 and not p.is_contiguous() for p in network.parameters())
        with evaluating(network):
            expected = network(examples.images[:2]).shape
            graph = trace(network, examples.images)
            self.prepare(network, examples)
            groups = []
            for group in self.groups(network, graph):
                scores = self.importance(group, examples)
                if scores is not None:
                    if len(scores) != group.channels or not torch.isfinite(scores).all():
                        raise UserError(f"{self.name}: scores of {group.name} are not finite; did the network diverge?")
                    group.rank(scores, graph)
                    groups.append(group)
            removed = []
            chosen = self.search(network, groups, sparsity, examples.images, dense)
            for group, steps in zip(groups, chosen, strict=True):
                if steps:
                    channels = sorted(channel for unit in group.units[:steps] for channel in unit)
                    dep = group.coupled[0].dep
                    cut(graph.get_pruning_group(dep.target.module, dep.handler, channels))
                    removed.append({"layer": group.name, "channels": channels})
            settle(network)
            network.zero_grad(set_to_none=True)
            if channels_last:
                network.to(memory_format=torch.channels_last)
            kind = type(network).__name__
            try:
                logits = network(examples.images[:2])
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"{kind} does not run with channels removed ({reason}): use masks") from error
            if logits.shape != expected:
                raise UserError(f"{kind} gives other shapes with channels removed: use masks")
        return {}, removed

    def groups(self, network: nn.Module, graph: torch_pruning.DependencyGraph) -> list[Group]:
        """The groups that may lose channels: neither the classifier nor a layer left out by pattern writes them."""
        last = network.get_submodule(classifier(network))
        groups = []
        for group in graph.get_all_groups(ignored_layers=[last], root_module_types=[nn.Conv2d, nn.Linear]):
            wrapped = Group(group, graph)
            names = [graph._module2name[module] for module in wrapped.writers]
            if wrapped.part and all(self.includes(name) for name in names):
                groups.append(wrapped)
        return groups

    def total(self, dense: nn.Module, example: Tensor) -> int:
        """What the target is a share of, counted in the dense network."""
        if self.target == "channels":
            copied = copy_network(dense)
            with evaluating(copied):
                return sum(group.channels for group in self.groups(copied, trace(copied, example)))
        macs = self.target == "macs"
        layers = describe(dense, example, set(prunable(dense, self)))
        return sum(layer.size({}, macs=macs) for layer in layers if macs or layer.counted)

    def search(
        self, network: nn.Module, groups: list[Group], asked: float, example: Tensor, dense: nn.Module
    ) -> list[int]:
        """How many units each group loses so that the target is met as closely as whole channels allow.

        Raises:
            UserError: even the closest is more than TOLERANCE away.
        """
        layers = describe(network, example, set(prunable(network, self)))
        if not groups:
            raise UserError(f"{self.name} finds no channels that it may remove in {type(network).__name__}: use masks")
        owner, order = self.order(groups)

        def steps(count: int) -> list[int]:
            lost = np.bincount(owner[order[:count]], minlength=len(groups))
            return [group.rounded(int(number), self.round_to) for group, number in zip(groups, lost, strict=True)]

        def left(taken: list[int]) -> float:
            if self.target == "channels":
                return sum((len(g.units) - t) * g.width for g, t in zip(groups, taken, strict=True))
            gone: dict[tuple[nn.Module, str], int] = {}
            for group, number in zip(groups, taken, strict=True):
                for end, cumulative in group.gone.items():
                    gone[end] = gone.get(end, 0) + int(cumulative[number])
            macs = self.target == "macs"
            return sum(layer.size(gone, macs=macs) for layer in layers if macs or layer.counted)

        total = self.total(dense, example)
        share = lambda count: 1 - left(steps(count)) / total  # noqa: E731
        low, high = 0, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if share(middle) < asked else (low, middle)
        best = min((low, high), key=lambda count: abs(share(count) - asked))
        if abs(share(best) - asked) > TOLERANCE:
            limits = f"minimum_channels={self.minimum_channels}, round_to={self.round_to}"
            raise UserError(
                f"{self.name}: {asked} of the {self.target} of {type(network).__name__} cannot be removed: whole"
                f" channels allow {share(low):.3f} or {share(high):.3f}, at most {share(len(order)):.3f} ({limits})"
            )
        return steps(best)

    def order(self, groups: list[Group]) -> tuple[np.ndarray, np.ndarray]:
        """Every possible step (group index), and the order in which the steps are taken."""
        owner = np.repeat(np.arange(len(groups)), [len(g.units) for g in groups])
        place = np.concatenate([np.arange(len(g.units)) for g in groups])
        width = np.concatenate([np.full(len(g.units), len(g.units)) for g in groups])
        key = (place + 0.5) / width
        if self.scope == "global":
            key = np.concatenate([g.scores for g in groups])
        elif self.scope == "isomorphic":
            scores = np.concatenate([g.scores for g in groups])
            family = np.unique([g.signature for g in groups], return_inverse=True)[1][owner]
            for member in np.unique(family):
                mine = np.flatnonzero(family == member)
                key[mine[np.argsort(scores[mine], kind="stable")]] = (np.arange(len(mine)) + 0.5) / len(mine)
        floor = np.array([-(-self.minimum_channels // g.width) for g in groups])
        allowed = np.flatnonzero(place < width - floor[owner])
        return owner, allowed[np.argsort(key[allowed], kind="stable")]


@METHODS.register("channels")
@options
class Channels(Removal):
    """Channels with the smallest L1 or L2 norm over all weights that hang on them (Fang et al. 2023, "DepGraph")."""

    norm: Annotated[Literal[1, 2], Field(description="L1 or L2")] = 2

    def importance(self, group, examples):
        return torch_pruning.importance.GroupMagnitudeImportance(p=self.norm)(group.coupled)


@METHODS.register("channels_random")
@options
class RandomChannels(Removal):
    """Random channels go: the control that every criterion must beat."""

    def importance(self, group, examples):
        # one stream per group, so that a group's draw does not depend on which groups come before it
        digest = hashlib.sha256(f"{examples.seed} {group.name}".encode()).digest()
        return torch.rand(group.channels, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7])))


@METHODS.register("channels_batchnorm")
@options
class BatchNormChannels(Removal):
    """Channels with the smallest BatchNorm scale (Liu et al. 2017, "Slimming"); groups without one stay whole."""

    def importance(self, group, examples):
        return torch_pruning.importance.BNScaleImportance()(group.coupled)


@METHODS.register("channels_fpgm")
@options
class FPGMChannels(Removal):
    """Channels whose filters are closest to all the others go: sum of distances (He et al. 2019, "FPGM", equation 6).

    Only filters that write the channels count, as in the paper; where several layers write them, their sums are added.
    torch-pruning's version also counts the readers, and fails on grouped convolutions.
    """

    def importance(self, group, examples):
        scores = torch.zeros(group.channels)
        for item in group.coupled:
            layer = item.dep.target.module
            if layer in group.writers and isinstance(layer, nn.Conv2d | nn.Linear):
                filters = layer.weight.detach().flatten(1)[item.idxs].float()
                scores.index_add_(0, torch.tensor(item.root_idxs), torch.cdist(filters, filters).sum(1).cpu())
        return scores / scores.mean()  # groups compete on the same scale, as in torch-pruning's other criteria


@METHODS.register("channels_lamp")
@options
class LAMPChannels(Removal):
    """Group L2 norms, normalised within each group as in LAMP (Lee et al. 2021).

    Differs from ``channels`` only where groups compete, that is not in scope ``uniform``.
    """

    def importance(self, group, examples):
        return torch_pruning.importance.LAMPImportance()(group.coupled)


@METHODS.register("channels_taylor")
@options
class TaylorChannels(Removal):
    """Sum of |w dL/dw| over all weights of a channel (Molchanov et al. 2019, first order)."""

    def prepare(self, network, examples):
        weights = dict(network.named_parameters())
        for name, gradient in mean_gradients(network, weights, examples, self.name).items():
            weights[name].grad = gradient

    def importance(self, group, examples):
        return torch_pruning.importance.GroupTaylorImportance()(group.coupled)


@METHODS.register("channels_hessian")
@options
class HessianChannels(Removal):
    """Sum of w^2 h over all weights of a channel, h the diagonal of the empirical Fisher (LeCun et al. 1989, "OBD").

    h is computed here: torch-pruning 1.6.0 keeps only the last example's gradient where it means to add them up.
    """

    def prepare(self, network, examples):
        weights = dict(network.named_parameters())
        for name, square in squared_gradients(network, weights, examples, self.name).items():
            weights[name].grad = square

    def importance(self, group, examples):
        return torch_pruning.importance.GroupHessianImportance()(group.coupled)
