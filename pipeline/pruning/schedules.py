"""Sparsity over time: once, in rounds with rewinding, or growing while the network trains."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.registry import Refused, Registry, options

SCHEDULES: Registry[Schedule] = Registry("pruning schedule")


@options
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
@options
class OneShot(Schedule):
    """Prune once to the target, then recover."""


@SCHEDULES.register("iterative")
@options
class Iterative(Schedule):
    """Several rounds of prune and recover; every round removes the same share of the weights that are left.

    rewind says where each round's recovery starts: ``weights`` (surviving weights go back to what they were after
    ``epoch`` epochs of dense training, and are trained as they were from there on; Frankle et al. 2020),
    ``learning_rate`` (they stay, and only the rest of that training is repeated; Renda et al. 2020) or ``none`` (they
    stay, ordinary fine-tuning).
    """

    steps: Annotated[int, Field(description="the number of rounds", ge=1, le=1000)] = 5
    rewind: Annotated[
        Literal["weights", "learning_rate", "none"], Field(description="what goes back before each round is trained")
    ] = "learning_rate"
    epoch: Annotated[
        int, Field(description="of dense training that it goes back to; 0: before the first", ge=0, le=100_000)
    ] = 1

    def rounds(self, target):
        earlier = [1 - (1 - target) ** (number / self.steps) for number in range(1, self.steps)]
        return [*earlier, target]  # the target itself, not 1 - (1 - target): no rounding


@SCHEDULES.register("gradual")
@options
class Gradual(Schedule):
    """Sparsity grows during training (AGP; Zhu & Gupta 2017, "To prune, or not to prune", equation 1).

    From ``initial`` to the target along target + (initial - target) (1 - t)^3, where t runs from 0 to 1 between the
    shares ``begin`` and ``end`` of training, in ``updates`` equal steps of t; after that it stays. A target below
    ``initial`` is there from the start.
    """

    grows: ClassVar[bool] = True
    initial: Annotated[float, Field(description="the sparsity at the start", ge=0, lt=1)] = 0.05
    begin: Annotated[float, Field(description="share of training where it begins to grow", ge=0, lt=1)] = 0.0
    end: Annotated[float, Field(description="share of training where the target is reached", gt=0, le=1)] = 0.75
    updates: Annotated[int, Field(description="steps of growth", ge=1, le=1_000_000)] = 100

    def __post_init__(self) -> None:
        if self.begin >= self.end:
            raise Refused("begin", f"{self.begin} is refused; give less than end, which is {self.end}")

    def at(self, progress, target):
        initial = min(self.initial, target)
        t = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        t = math.floor(t * self.updates + 1e-9) / self.updates  # 1e-9: rounding must not miss the end
        return target + (initial - target) * (1 - t) ** 3
