"""Losses that read logits and labels only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
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

    standardize: each example's logits are first brought to mean 0 and deviation 1 (Sun et al. 2024, algorithm 1), so
    that the student matches the teacher's order and not its scale; their setting is temperature 2 and weight 9.
    """

    weight: float = 0.9
    temperature: float = 4.0
    standardize: bool = False

    label_weight: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(temperature=self.temperature)

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        logits = student.logits, teacher.logits
        if self.standardize:
            logits = tuple((z - z.mean(1, True)) / (z.std(1, keepdim=True) + 1e-7) for z in logits)
        return soft_divergence(*logits, self.temperature).mean()


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of each example: logits [batch, classes] -> [batch]."""
    student, teacher = (F.log_softmax(logits / temperature, 1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def require_positive(**options: float) -> None:
    """Raises ValueError that names the first option which is not a finite number above 0."""
    for name, option in options.items():
        if not 0 < option < float("inf"):
            raise ValueError(f"{name} {option:g} is refused; give a number above 0")


def require_weights(**options: float) -> None:
    """Raises ValueError that names the first option which is negative or no finite number, or all if they are 0."""
    for name, option in options.items():
        if not 0 <= option < float("inf"):
            raise ValueError(f"{name} {option:g} is refused; give a finite number that is not negative")
    if not any(options.values()):
        raise ValueError(f"{' and '.join(options)} are all zero; give one of them a weight above 0")


@LOSSES.register("dkd")
@dataclass(frozen=True)
class DecoupledTargets(Loss):
    """Decoupled distillation: the label against the rest, and the rest among itself (Zhao et al. 2022, eq. 7).

    T^2 (target KL(b_t || b_s) + others KL(q_t || q_s)), b the pair (label, all others), q the other classes alone. The
    released code ramps the weight up over 20 epochs; here it is constant. Weights: theirs for ResNet32x4 -> 8x4.
    """

    weight: float = 1.0
    target: float = 1.0
    others: float = 8.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weights(target=self.target, others=self.others)
        require_positive(temperature=self.temperature)

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        rows = torch.arange(len(batch.labels), device=batch.labels.device)
        pairs, rests = [], []
        for logits in (student.logits / self.temperature, teacher.logits / self.temperature):
            label = logits[rows, batch.labels]
            # Not -inf: the label's place then weighs nothing, without a gradient of NaN.
            rest = logits.scatter(1, batch.labels[:, None], -1e9)
            pairs.append(torch.stack([label, rest.logsumexp(1)], 1))
            rests.append(rest)
        return self.temperature**2 * (
            self.target * soft_divergence(*pairs, 1.0).mean() + self.others * soft_divergence(*rests, 1.0).mean()
        )


@LOSSES.register("dist")
@dataclass(frozen=True)
class Correlations(Loss):
    """Pearson distance between class probabilities, within each example and within each class (Huang et al. 2022).

    T^2 (inter mean_i (1 - r(row i)) + intra mean_c (1 - r(column c))), eq. 8 to 10; T and weights as for CIFAR-100.
    """

    weight: float = 1.0
    inter: float = 2.0
    intra: float = 2.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weights(inter=self.inter, intra=self.intra)
        require_positive(temperature=self.temperature)

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        ours, theirs = ((outputs.logits / self.temperature).softmax(1) for outputs in (student, teacher))
        distances = [
            1 - F.cosine_similarity(s - s.mean(1, True), t - t.mean(1, True))
            for s, t in ((ours, theirs), (ours.T, theirs.T))
        ]
        return self.temperature**2 * (self.inter * distances[0].mean() + self.intra * distances[1].mean())
