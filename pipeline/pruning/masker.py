"""Sparsity over time: schedules, the Masker that a training loop holds, and rewinding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.folding import copy_network
from pipeline.pruning.masks import MaskMethod, apply_masks
from pipeline.pruning.method import Examples, Masks, prunable
from pipeline.registry import Registry, UserError

SCHEDULES: Registry = Registry("pruning schedule")


@SCHEDULES.register("one_shot")
@dataclass(frozen=True)
class OneShot:
    """Prune once to the target, then recover."""

    def rounds(self, target: float) -> list[float]:
        """The sparsity of each round of prune and recover."""
        return [target]

    def at(self, progress: float, target: float) -> float:
        """The sparsity after ``progress`` (0 to 1) of the recovery of a round that ends at ``target``."""
        return target


@SCHEDULES.register("iterative")
@dataclass(frozen=True)
class Iterative:
    """Several rounds of prune and recover; every round removes the same share of the weights that are left.

    rewind: what each round's recovery starts from: ``weights`` (the surviving weights go back to an earlier state, Frankle
    et al. 2020, see :func:`rewind`), ``learning_rate`` (they stay, and the learning rate's schedule is repeated, Renda et
    al. 2020) or ``none`` (they stay, ordinary fine-tuning).
    """

    steps: int = 5
    rewind: str = "learning_rate"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps} is less than 1")
        if self.rewind not in ("weights", "learning_rate", "none"):
            raise ValueError(f"rewind '{self.rewind}' is not one of weights, learning_rate, none")

    def rounds(self, target: float) -> list[float]:
        earlier = [1 - (1 - target) ** (number / self.steps) for number in range(1, self.steps)]
        return [*earlier, target]

    def at(self, progress: float, target: float) -> float:
        return target


@SCHEDULES.register("gradual")
@dataclass(frozen=True)
class Gradual:
    """Sparsity grows while the network trains (AGP; Zhu & Gupta 2017, equation 1).

    From ``initial`` to the target along target + (initial - target) (1 - t)^3, where t runs from 0 to 1 between the
    shares ``begin`` and ``end`` of training; in ``updates`` equal steps of t, after which it stays.
    """

    initial: float = 0.05
    begin: float = 0.0
    end: float = 0.75
    updates: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.initial < 1:
            raise ValueError(f"initial {self.initial} is outside [0, 1)")
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(f"begin {self.begin} and end {self.end} are not 0 <= begin < end <= 1")
        if self.updates < 1:
            raise ValueError(f"updates {self.updates} is less than 1")

    def rounds(self, target: float) -> list[float]:
        return [target]

    def at(self, progress: float, target: float) -> float:
        initial = min(self.initial, target)
        t = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        t = math.floor(t * self.updates + 1e-9) / self.updates
        return target + (initial - target) * (1 - t) ** 3


class Masker:
    """Keeps a masked network truly sparse while something else trains it.

    Call :meth:`step` after every optimizer step: whatever momentum or weight decay put into a masked weight is
    multiplied away, so the network is sparse at every moment. Under a gradual schedule it also lets the masks grow; a
    removed weight never comes back. It is a function of the weights and of progress only, so a resumed run that is
    given the saved ``masks`` goes on as if it had not stopped.

    Args:
        network: already masked, trained in place.
        masks: of the network as it is (``Pruned.masks``, or what was saved).
        method, sparsity: as given to ``prune``; ``sparsity`` is the one at the end.
        schedule: one of SCHEDULES.
        images, labels, seed: as for ``prune``, for schedules that choose more weights on the way.
    """

    def __init__(
        self,
        network: nn.Module,
        masks: Masks,
        *,
        method: MaskMethod,
        sparsity: float,
        schedule: OneShot | Iterative | Gradual = OneShot(),  # noqa: B008  (frozen)
        images: Tensor | None = None,
        labels: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.network, self.method, self.schedule, self.sparsity = network, method, schedule, sparsity
        self.examples = Examples(images, labels, seed)
        self.progress = 0.0
        self.wanted = -1.0
        self.use(masks)

    def use(self, masks: Masks) -> None:
        """Takes over new masks and applies them."""
        unknown = masks.keys() - dict(self.network.named_parameters()).keys()
        if unknown:
            raise UserError(f"masks for {sorted(unknown)[0]}, which the network does not have: they belong to another one")
        self.parameters = [self.network.get_parameter(name) for name in masks]
        device = self.parameters[0].device if masks else None
        self.masks = {name: mask.to(device) for name, mask in masks.items()}
        # in the weights' own type and memory layout, so that one fused multiplication does them all
        self.factors = [torch.empty_like(p).copy_(m) for p, m in zip(self.parameters, self.masks.values(), strict=True)]
        apply_masks(self.network, self.masks)

    def step(self, progress: float) -> None:
        """Call after each optimizer step.

        Args:
            progress: share of training done, this step included, from 0 to 1.
        """
        self.progress = progress
        wanted = self.schedule.at(progress, self.sparsity)
        if wanted > self.wanted and isinstance(self.schedule, Gradual):
            self.grow(wanted)
        if self.parameters:
            with torch.no_grad():
                torch._foreach_mul_(self.parameters, self.factors)

    def grow(self, wanted: float) -> None:
        """Removes further weights, up to the sparsity wanted now."""
        self.wanted = wanted
        device = self.parameters[0].device
        apply_masks(self.network, self.masks)  # the method must see the network as it is after the step
        self.use(self.method.masks(self.network, wanted, self.examples.to(device), previous=self.masks))

    def verify(self) -> None:
        """Checks that the network is what the masks and the schedule say.

        Raises:
            UserError: a masked weight is not zero (names the layer), or the number of removed weights is not the one that
                the schedule asks for at this point.
        """
        for parameter, (name, mask) in zip(self.parameters, self.masks.items(), strict=True):
            alive = int(torch.count_nonzero(parameter.detach()[~mask]))
            if alive:
                raise UserError(f"{name}: {alive} masked weights are not zero; Masker.step must follow every optimizer step")
        asked = self.schedule.at(self.progress, self.sparsity)
        weights = prunable(self.network, self.method)
        removed = sum(int((~self.masks[name]).sum()) for name in weights if name in self.masks)
        expected = self.method.removed_count(self.network, asked)
        if removed != expected:
            total = sum(weight.numel() for weight in weights.values())
            raise UserError(
                f"{removed} of {total} prunable weights are masked, but sparsity {asked:.4f} takes {expected};"
                " the masks belong to another sparsity, or Masker.step was not called"
            )


def rewind(network: nn.Module, masks: Masks, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of a masked network whose surviving weights (and buffers) are those of an earlier state.

    Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis": train, prune by the final weights,
    go back to the weights of an early step, train again.

    Args:
        weights: the ``state_dict`` of the same network at the earlier step.
    """
    result = copy_network(network)
    result.load_state_dict(weights)
    apply_masks(result, masks)
    return result
