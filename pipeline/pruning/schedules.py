"""Sparsity over time: once, in rounds with rewinding, or growing while the network trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from pipeline.registry import Registry

SCHEDULES: Registry[Schedule] = Registry("pruning schedule")


@dataclass(frozen=True)
class Schedule:
    """How a network gets to its target sparsity. ``grows``: whether masks change while it trains."""

    grows: ClassVar[bool] = False

    def rounds(self, target: float) -> list[float]:
        """The sparsity of each round of prune and recover; the last is the target."""
        return [target]

    def at(self, progress: float, target: float) -> float:
        """The sparsity at ``progress`` (0 to 1) of the recovery in a round that ends at ``target``."""
        return target


@SCHEDULES.register("one_shot")
@dataclass(frozen=True)
class OneShot(Schedule):
    """Prune once to the target, then recover."""


@SCHEDULES.register("iterative")
@dataclass(frozen=True)
class Iterative(Schedule):
    """Several rounds of prune and recover; every round removes the same share of the weights that are left.

    steps: the number of rounds.
    rewind: where each round's recovery starts: ``weights`` (surviving weights go back to what they were after ``epoch``
    epochs of dense training, and are trained as they were from there on; Frankle et al. 2020), ``learning_rate`` (they
    stay, and only the rest of that training is repeated; Renda et al. 2020) or ``none`` (they stay, ordinary
    fine-tuning).
    epoch: 0 goes back to the initial weights, and to the first value of the learning rate.
    """

    steps: int = 5
    rewind: str = "learning_rate"
    epoch: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps} is less than 1")
        if self.epoch < 0:
            raise ValueError(f"epoch {self.epoch} is negative")
        if self.rewind not in ("weights", "learning_rate", "none"):
            raise ValueError(f"rewind '{self.rewind}' is not one of weights, learning_rate, none")

    def rounds(self, target):
        earlier = [1 - (1 - target) ** (number / self.steps) for number in range(1, self.steps)]
        return [*earlier, target]  # the target itself, not 1 - (1 - target): no rounding


@SCHEDULES.register("gradual")
@dataclass(frozen=True)
class Gradual(Schedule):
    """Sparsity grows during training (AGP; Zhu & Gupta 2017, "To prune, or not to prune", equation 1).

    From ``initial`` to the target along target + (initial - target) (1 - t)^3, where t runs from 0 to 1 between the
    shares ``begin`` and ``end`` of training, in ``updates`` equal steps of t; after that it stays. A target below
    ``initial`` is there from the start.
    """

    grows: ClassVar[bool] = True
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

    def at(self, progress, target):
        initial = min(self.initial, target)
        t = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        t = math.floor(t * self.updates + 1e-9) / self.updates  # 1e-9: rounding must not miss the end
        return target + (initial - target) * (1 - t) ** 3
