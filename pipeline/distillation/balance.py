"""Losses that treat classes unequally on purpose, so that compression costs them equally."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distillation.logits import soft_divergence
from pipeline.distillation.loss import LOSSES, Labelled, Loss, Temperature, TrainingSet, Weight
from pipeline.models import Outputs
from pipeline.registry import options

Beta = Annotated[
    float, Field(description="0 weighs all classes alike, towards 1 by the inverse of their frequency", ge=0, lt=1)
]
StepSize = Annotated[float, Field(description="how fast the worst classes gain weight", gt=0, le=1e6)]


class PerClass(nn.Module):
    """Numbers per class, [classes], that a loss reads or keeps up to date; they travel with the checkpoint."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.float())


def effective_weights(training: TrainingSet, beta: float) -> Tensor:
    """Weights per class ~ 1 / effective number of examples (Cui et al. 2019, eq. 2), with mean 1 over the examples.

    The paper scales them to the sum C instead, which makes the loss smaller the longer the tail; this way the learning
    rate, and the share beside other losses, keep their meaning.
    """
    counts = training.counts.double()
    weights = (1 - beta) / (1 - beta ** counts.clamp(min=1))
    return (weights * counts.sum() / (weights * counts).sum()).float()


@LOSSES.register("balanced_ce")
@options
class BalancedCrossEntropy(Loss):
    """Class-balanced cross-entropy: mean of w_y CE, w by the effective number of examples (Cui et al. 2019, eq. 8)."""

    weight: Weight = 1.0
    beta: Beta = 0.9999

    needs_teacher: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = True

    def adapters(self, student: Outputs, teacher: Outputs | None, training: TrainingSet) -> PerClass:
        return PerClass(effective_weights(training, self.beta))

    def value(self, student: Outputs, teacher: Outputs | None, batch: Labelled, adapters: PerClass) -> Tensor:
        return (adapters.values[batch.labels] * F.cross_entropy(student.logits, batch.labels, reduction="none")).mean()


@LOSSES.register("balanced_kd")
@options
class BalancedSoftTargets(Loss):
    """``kd`` with each example weighted by its label's class as in ``balanced_ce`` (Cui et al. 2019, applied to KD)."""

    weight: Weight = 0.9
    temperature: Temperature = 4.0
    beta: Beta = 0.9999

    label_weight: ClassVar[float] = 0.1

    def adapters(self, student: Outputs, teacher: Outputs, training: TrainingSet) -> PerClass:
        return PerClass(effective_weights(training, self.beta))

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: PerClass) -> Tensor:
        divergence = soft_divergence(student.logits, teacher.logits, self.temperature)
        return (adapters.values[batch.labels] * divergence).mean()


class Margins(nn.Module):
    """Sum of the teacher's margins and number of examples per class, [2, classes], over the training so far."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(2, classes))

    def update(self, teacher: Tensor, labels: Tensor) -> Tensor:
        """Takes logits [batch, classes] in and gives the mean margin per class, [classes], 0 for classes never seen."""
        probabilities = teacher.softmax(1)
        label = probabilities.gather(1, labels[:, None])
        best_other = probabilities.scatter(1, labels[:, None], -1).amax(1, keepdim=True)
        entries = torch.cat([label - best_other, torch.ones_like(label)], 1).T.to(self.sums.dtype)
        if torch.is_grad_enabled():
            self.sums = self.sums.index_add(1, labels, entries)
        return self.sums[0] / self.sums[1].clamp(min=1)


@LOSSES.register("trusted_kd")
@options
class TrustedSoftTargets(Loss):
    """a_y kd + (1 - a_y) ce, with a trust a_y that grows with the teacher's margin in class y (Lukasik et al. 2022).

    Follows their AdaAlpha (section 4): a_y = highest_trust * max(0, mean over class y of p(y) - max other p). They
    measure the margin on held-out data; here it is the running mean over the augmented training batches, in which a
    teacher that knows its training data by heart is trusted everywhere. With full trust: 0.9 kd + 0.1 ce.
    """

    weight: Weight = 1.0
    temperature: Temperature = 4.0
    highest_trust: Annotated[float, Field(description="trust in a teacher that is never wrong", gt=0, le=1)] = 0.9

    uses_labels: ClassVar[bool] = True

    def adapters(self, student: Outputs, teacher: Outputs, training: TrainingSet) -> Margins:
        return Margins(training.classes)

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: Margins) -> Tensor:
        trust = self.highest_trust * adapters.update(teacher.logits, batch.labels).clamp(min=0)[batch.labels]
        divergence = soft_divergence(student.logits, teacher.logits, self.temperature)
        return (
            trust * divergence + (1 - trust) * F.cross_entropy(student.logits, batch.labels, reduction="none")
        ).mean()


def worst_classes(losses: Tensor, labels: Tensor, adapters: PerClass, step_size: float) -> Tensor:
    """sum_c q_c L_c, with q_c ~ q_c exp(step_size L_c) raised first (Sagawa et al. 2020, algorithm 1).

    L_c is the mean of ``losses`` [batch] over the batch's examples of class c; classes that are not in the batch add
    nothing and keep their share before normalisation, as in the released code.
    """
    classes = len(adapters.values)
    sums = losses.new_zeros(classes).index_add(0, labels, losses)
    means = sums / torch.bincount(labels, minlength=classes).clamp(min=1)
    if torch.is_grad_enabled():
        raised = adapters.values * torch.exp(step_size * means.detach().to(adapters.values.dtype))
        adapters.values = raised / raised.sum()
    return (adapters.values * means).sum()


@LOSSES.register("robust_ce")
@options
class RobustCrossEntropy(Loss):
    """Cross-entropy of the worst classes: group DRO with the classes as groups (Sagawa et al. 2020)."""

    weight: Weight = 1.0
    step_size: StepSize = 0.01

    needs_teacher: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = True

    def adapters(self, student: Outputs, teacher: Outputs | None, training: TrainingSet) -> PerClass:
        return PerClass(torch.full((training.classes,), 1 / training.classes))

    def value(self, student: Outputs, teacher: Outputs | None, batch: Labelled, adapters: PerClass) -> Tensor:
        losses = F.cross_entropy(student.logits, batch.labels, reduction="none")
        return worst_classes(losses, batch.labels, adapters, self.step_size)


@LOSSES.register("robust_kd")
@options
class RobustSoftTargets(Loss):
    """``kd`` of the classes in which the student departs most from the teacher (Vilouras et al. 2023): group DRO."""

    weight: Weight = 0.9
    temperature: Temperature = 4.0
    step_size: StepSize = 0.01

    label_weight: ClassVar[float] = 0.1

    def adapters(self, student: Outputs, teacher: Outputs, training: TrainingSet) -> PerClass:
        return PerClass(torch.full((training.classes,), 1 / training.classes))

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: PerClass) -> Tensor:
        divergence = soft_divergence(student.logits, teacher.logits, self.temperature)
        return worst_classes(divergence, batch.labels, adapters, self.step_size)
