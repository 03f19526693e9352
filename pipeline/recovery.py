"""A recovery is five independent answers: start, examples, update, what it learns from, how long.

What it learns from are losses with teachers (`pipeline.distillation`), how long is a `pipeline.training.Fit`. The other
answers are here, each a registered frozen dataclass with a default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline import models, pruning
from pipeline.data import Split
from pipeline.models import NetworkInfo
from pipeline.registry import Registry, options

STARTS: Registry[Start] = Registry("start")
SELECTIONS: Registry[Selection] = Registry("selection of examples")
MIXTURES: Registry[Mixture] = Registry("mixture of examples")
UPDATES: Registry[Update] = Registry("update")


# ------------------------------------------------------------------------------------------------------------ start


@dataclass(frozen=True)
class Origin:
    """Where a recovery comes from.

    info, masks: of the pruned network. seed: of its dense network. early: the weights that the dense network had after
    so many epochs, by name, for those epochs that the start names as `Start.early_epochs`.
    """

    info: NetworkInfo
    masks: pruning.Masks
    seed: int
    early: Callable[[int], dict[str, Tensor]]

    def example(self) -> Tensor:
        """An image of the network's shape, to trace it with."""
        return torch.zeros(1, *self.info.input_shape)


class Start(ABC):
    """The weights that a recovery starts from. Shape and masks are those of the pruned network, whatever they are.

    follows: the section of a study whose options the training has, ``recover`` or ``train``.
    """

    follows: ClassVar[str] = "recover"

    @property
    def first_epoch(self) -> int:
        """Epochs of the training that are left out at its beginning, as if they were done."""
        return 0

    @property
    def early_epochs(self) -> tuple[int, ...]:
        """After which epochs the dense network's weights have to be kept; 0 means before the first."""
        return ()

    @abstractmethod
    def begin(self, network: nn.Module, origin: Origin) -> nn.Module:
        """The network to train, made of the pruned one."""


@STARTS.register("kept")
@options
class Kept(Start):
    """The weights that pruning left."""

    def begin(self, network: nn.Module, origin: Origin) -> nn.Module:
        return network


@STARTS.register("scratch")
@options
class Scratch(Start):
    """New random weights: after physical removal a small dense network, at sparsity 0 with a teacher a born-again one
    (Furlanello et al. 2018).

    They are drawn by the seed and are not those that dense training of this seed started from, with which masks can
    find a lottery ticket (Frankle and Carbin 2019). After physical removal the channels that remain keep the scale of
    the dense network's initialisation.
    """

    def begin(self, network: nn.Module, origin: Origin) -> nn.Module:
        info = origin.info
        drawn = int(np.random.SeedSequence((origin.seed, 2)).generate_state(1)[0])
        fresh = models.build(info.network, input_shape=info.input_shape, classes=len(info.classes), seed=drawn)
        if info.removed:
            pruning.replay(fresh, list(info.removed), origin.example())
        pruning.apply_masks(fresh, origin.masks)
        return fresh


@STARTS.register("rewound")
@options
class Rewound(Start):
    """Back in dense training: what is left has the weights that it had then (Frankle et al. 2020), and is trained as it
    was from there on.
    """

    epoch: Annotated[
        int, Field(description="of dense training that it goes back to; 0: before the first", ge=0, le=100_000)
    ] = 1
    weights: Annotated[
        bool, Field(description="false: only the learning rate goes back, the weights stay (Renda et al. 2020)")
    ] = True

    follows: ClassVar[str] = "train"

    @property
    def first_epoch(self) -> int:
        return self.epoch

    @property
    def early_epochs(self) -> tuple[int, ...]:
        return (self.epoch,) if self.weights else ()

    def begin(self, network: nn.Module, origin: Origin) -> nn.Module:
        if self.weights:
            dense = models.fresh(origin.info)
            dense.load_state_dict(origin.early(self.epoch))
            removed, example = list(origin.info.removed), origin.example()
            early = pruning.rewind(dense, masks=origin.masks, removed=removed, example=example)
            network.load_state_dict(early.state_dict())
        return network


# --------------------------------------------------------------------------------------------------------- examples


class Selection(ABC):
    """Which training examples a recovery sees."""

    @abstractmethod
    def choose(self, train: Split) -> Split:
        """Those of the training split that it trains on; no class may go missing."""


@SELECTIONS.register("all")
@options
class All(Selection):
    """Every training example."""

    def choose(self, train: Split) -> Split:
        return train


class Mixture:
    """How often the chosen examples come, relative to each other."""


@MIXTURES.register("uniform")
@options
class Uniform(Mixture):
    """Each once in an epoch."""


# ----------------------------------------------------------------------------------------------------------- update


class Update(ABC):
    """Which parameters a recovery moves. The optimizer holds these and no others.

    A layer of which none moves stays as it is, with its BatchNorm statistics. What losses train beside the network
    (adapters) always moves.
    """

    @abstractmethod
    def moves(self, network: nn.Module, info: NetworkInfo) -> list[str]:
        """Names of parameters of the network."""


@UPDATES.register("everything")
@options
class Everything(Update):
    """Every parameter."""

    def moves(self, network: nn.Module, info: NetworkInfo) -> list[str]:
        return [name for name, _ in network.named_parameters()]
