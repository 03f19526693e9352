"""What a loss is: options, trainable parts, and a value in full precision; and the registry that names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.models import Outputs
from pipeline.registry import Registry, options


class Labelled(Protocol):
    """A batch, see `pipeline.data.batches.Batch`; a loss may read labels and ids."""

    @property
    def inputs(self) -> Tensor:
        """[batch, ...], what networks take."""

    @property
    def labels(self) -> Tensor:
        """int64 [batch], 0 .. classes - 1."""

    @property
    def ids(self) -> Tensor:
        """int64 [batch], the row of each example in the training split; one may stand here twice."""

    @property
    def draw(self) -> Tensor:
        """int64 [batch], the position of each in the training stream; no two share one."""


@dataclass(frozen=True)
class TrainingSet:
    """What the trainable parts of a loss may know of the training split.

    labels: int64 [examples]. classes: how many there are. occurring: int64, the rows that the training stream can hold,
    each once, ascending; None stands for all.
    """

    labels: Tensor
    classes: int
    occurring: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """Occurring examples per class, int64 [classes]."""
        labels = self.labels if self.occurring is None else self.labels[self.occurring]
        return torch.bincount(labels, minlength=self.classes)


# Types of options that several losses have.
Weight = Annotated[float, Field(description="factor in the sum of losses", ge=0, le=1e12)]
Temperature = Annotated[float, Field(description="divides the logits before the softmax", gt=0, le=1e6)]


@options
class Loss:
    """One term of an objective; its fields are its options, the first of them its weight in the sum.

    A new loss subclasses this, registers itself in ``LOSSES`` and defines ``value``; ``adapters`` too if it has parts
    that are trained with the student (a regressor, a projection) or that remember (a memory bank).
    """

    weight: Weight = 1.0

    name: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    needs_features: ClassVar[bool] = False  # reads blocks or embedding; False: the logits are enough
    uses_labels: ClassVar[bool] = False  # teaches the labels, so that no ``ce`` has to be added
    label_weight: ClassVar[float] = 1.0  # weight of the ``ce`` that is added when this loss stands alone

    def adapters(self, student: Outputs, teacher: Outputs | None, training: TrainingSet) -> nn.Module | None:
        """Builds the parts that are trained with the student and dropped after, from one batch; None: no such parts."""
        return None

    def value(self, student: Outputs, teacher: Outputs | None, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        """The unweighted loss, a scalar; every floating point input has at least 32 bits."""
        raise NotImplementedError

    def __call__(
        self, student: Outputs, teacher: Outputs | None, batch: Labelled, adapters: nn.Module | None = None
    ) -> Tensor:
        """The unweighted loss over the batch, a scalar, computed in float32 (or wider) whatever comes in.

        Softmax, norms and Gram matrices lose their meaning in 8 or 11 bits, so autocast is off inside a loss.
        """
        with torch.autocast(student.logits.device.type, enabled=False):
            return self.value(self._widened(student), self._widened(teacher), batch, adapters)

    def _widened(self, outputs: Outputs | None) -> Outputs | None:
        if outputs is None or not self.needs_features:
            return outputs and Outputs(widen(outputs.logits), outputs.blocks, outputs.embedding)
        return Outputs(widen(outputs.logits), [widen(block) for block in outputs.blocks], widen(outputs.embedding))


def widen(values: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


LOSSES: Registry[Loss] = Registry("loss")
