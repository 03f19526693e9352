"""Losses that read logits and labels only."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distillation.loss import LOSSES, Labelled, Loss, Temperature, Weight
from pipeline.models import Outputs
from pipeline.registry import Refused, options


@LOSSES.register("ce")
@options
class CrossEntropy(Loss):
    """Cross-entropy with the labels; ``label_smoothing`` as in Szegedy et al. 2016 (section 7), share in [0, 1)."""

    label_smoothing: Annotated[
        float, Field(description="share of each label that is spread over all classes", ge=0, lt=1)
    ] = 0.0

    needs_teacher: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = True

    def value(self, student: Outputs, teacher: Outputs | None, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        return F.cross_entropy(student.logits, batch.labels, label_smoothing=self.label_smoothing)


@LOSSES.register("kd")
@options
class SoftTargets(Loss):
    """T^2 KL(teacher || student) of the softened class probabilities (Hinton et al. 2015, section 2).

    Mean over the batch, sum over the classes; T^2 keeps the size of the gradient as the temperature changes. Weights
    as in Tian et al. 2020: 0.9, beside 0.1 of cross-entropy.

    standardize: each example's logits are first brought to mean 0 and deviation 1 (Sun et al. 2024, algorithm 1), so
    that the student matches the teacher's order and not its scale; their setting is temperature 2 and weight 9.
    """

    weight: Weight = 0.9
    temperature: Temperature = 4.0
    standardize: Annotated[bool, Field(description="bring each example's logits to mean 0 and deviation 1")] = False

    label_weight: ClassVar[float] = 0.1

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        logits = student.logits, teacher.logits
        if self.standardize:
            logits = tuple((z - z.mean(1, True)) / (z.std(1, keepdim=True) + 1e-7) for z in logits)
        return soft_divergence(*logits, self.temperature).mean()


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of each example: logits [batch, classes] -> [batch]."""
    student, teacher = (F.log_softmax(logits / temperature, 1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def require_one(**weights: float) -> None:
    """Refuses weights that are all zero."""
    if not any(weights.values()):
        first, *others = weights
        raise Refused(first, f"0 is refused beside {' and '.join(others)} 0; give one of them a weight above 0")


@LOSSES.register("dkd")
@options
class DecoupledTargets(Loss):
    """Decoupled distillation: the label against the rest, and the rest among itself (Zhao et al. 2022, eq. 7).

    T^2 (target KL(b_t || b_s) + others KL(q_t || q_s)), b the pair (label, all others), q the other classes alone. The
    released code ramps the weight up over 20 epochs; here it is constant. Weights: theirs for ResNet32x4 -> 8x4.
    """

    weight: Weight = 1.0
    target: Annotated[float, Field(description="factor of the label against the rest", ge=0, le=1e12)] = 1.0
    others: Annotated[float, Field(description="factor of the other classes among each other", ge=0, le=1e12)] = 8.0
    temperature: Temperature = 4.0

    def __post_init__(self) -> None:
        require_one(target=self.target, others=self.others)

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
@options
class Correlations(Loss):
    """Pearson distance between class probabilities, within each example and within each class (Huang et al. 2022).

    T^2 (inter mean_i (1 - r(row i)) + intra mean_c (1 - r(column c))), eq. 8 to 10; T and weights as for CIFAR-100.
    """

    weight: Weight = 1.0
    inter: Annotated[float, Field(description="factor of the distances within examples", ge=0, le=1e12)] = 2.0
    intra: Annotated[float, Field(description="factor of the distances within classes", ge=0, le=1e12)] = 2.0
    temperature: Temperature = 4.0

    def __post_init__(self) -> None:
        require_one(inter=self.inter, intra=self.intra)

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        ours, theirs = ((outputs.logits / self.temperature).softmax(1) for outputs in (student, teacher))
        distances = [
            1 - F.cosine_similarity(s - s.mean(1, True), t - t.mean(1, True))
            for s, t in ((ours, theirs), (ours.T, theirs.T))
        ]
        return self.temperature**2 * (self.inter * distances[0].mean() + self.intra * distances[1].mean())
