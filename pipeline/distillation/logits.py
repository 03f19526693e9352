"""Losses that read logits and labels only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distillation.loss import LOSSES, Labelled, Loss
from pipeline.models import Outputs


@LOSSES.register("ce")
@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy with the labels; ``label_smoothing`` as in Szegedy et al. 2016 (section 7), share in [0, 1)."""

    label_smoothing: float = 0.0

    needs_teacher: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing {self.label_smoothing:g} is outside [0, 1)")

    def value(self, student: Outputs, teacher: Outputs | None, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        return F.cross_entropy(student.logits, batch.labels, label_smoothing=self.label_smoothing)


@LOSSES.register("kd")
@dataclass(frozen=True)
class SoftTargets(Loss):
    """T^2 KL(teacher || student) of the softened class probabilities (Hinton et al. 2015, section 2).

    Mean over the batch, sum over the classes; T^2 keeps the size of the gradient as the temperature changes. Weights
    as in Tian et al. 2020: 0.9, beside 0.1 of cross-entropy.
    """

    weight: float = 0.9
    temperature: float = 4.0

    label_weight: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(temperature=self.temperature)

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        return soft_divergence(student.logits, teacher.logits, self.temperature).mean()


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of each example: logits [batch, classes] -> [batch]."""
    student, teacher = (F.log_softmax(logits / temperature, 1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def require_positive(**options: float) -> None:
    """Raises ValueError that names the first option which is not a finite number above 0."""
    for name, option in options.items():
        if not 0 < option < float("inf"):
            raise ValueError(f"{name} {option:g} is refused; give a number above 0")
