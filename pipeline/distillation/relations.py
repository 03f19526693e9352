"""Losses that compare how the examples of a batch relate to each other; widths and architectures may differ freely."""

from __future__ import annotations

from math import factorial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distillation.align import paired
from pipeline.distillation.logits import require_one
from pipeline.distillation.loss import LOSSES, Labelled, Loss, Weight
from pipeline.models import Outputs
from pipeline.registry import options


@LOSSES.register("sp")
@options
class SimilarityPreserving(Loss):
    """||G_t - G_s||_F^2 / batch^2, G the row-normalised Gram matrix of the last block (Tung & Mori 2019, eq. 4)."""

    weight: Weight = 3000.0

    needs_features: ClassVar[bool] = True

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        maps = [block.flatten(1) for block in paired(student, teacher)[-1]]
        return F.mse_loss(*(F.normalize(rows @ rows.T) for rows in maps))


@LOSSES.register("pkt")
@options
class ProbabilisticTransfer(Loss):
    """KL between the conditional probabilities of neighbours in the two embeddings (Passalis & Tefas 2018, eq. 7).

    p(j | i) ~ (1 + cosine(i, j)) / 2, the example itself included. Follows the released code, the mean over batch^2
    entries (weight 30000 belongs to that); the paper sums them.
    """

    weight: Weight = 30000.0

    needs_features: ClassVar[bool] = True

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        ours, theirs = (neighbours(outputs.embedding) for outputs in (student, teacher))
        return (theirs * ((theirs + 1e-7) / (ours + 1e-7)).log()).mean()


def neighbours(embedding: Tensor) -> Tensor:
    """p(j | i), [batch, batch], rows sum to 1, from the cosines of [batch, width]."""
    directions = F.normalize(embedding, eps=1e-7)
    similarity = (directions @ directions.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


@LOSSES.register("rkd")
@options
class Relational(Loss):
    """Huber distance of normalised distances and of angles between embeddings (Park et al. 2019, eq. 5 and 8).

    distance * distance term + angle * angle term, each the mean over all pairs or triples, coincident ones included
    (they add 0), as in the released code; weights 25 and 50 as there. Memory grows with batch^3.
    """

    weight: Weight = 1.0
    distance: Annotated[float, Field(description="factor of the distances", ge=0, le=1e12)] = 25.0
    angle: Annotated[float, Field(description="factor of the angles", ge=0, le=1e12)] = 50.0

    needs_features: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_one(distance=self.distance, angle=self.angle)

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        ours, theirs = student.embedding, teacher.embedding
        return self.distance * F.smooth_l1_loss(distances(ours), distances(theirs)) + self.angle * F.smooth_l1_loss(
            angles(ours), angles(theirs)
        )


def distances(embedding: Tensor) -> Tensor:
    """Distances between the rows of [batch, width], in units of their mean over the pairs that lie apart."""
    squares = embedding.square().sum(1)
    squared = squares[:, None] + squares - 2 * embedding @ embedding.T
    apart = ~torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
    # Clamped before the root, whose slope at 0 is infinite.
    distance = squared.clamp(min=1e-12).sqrt() * apart
    return distance / (distance.sum() / apart.sum().clamp(min=1)).clamp(min=1e-12)


def angles(embedding: Tensor) -> Tensor:
    """cos of the angle at i between j and k, [batch, batch, batch]; 0 where two of the three coincide."""
    directions = F.normalize(embedding[None] - embedding[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


@LOSSES.register("cc")
@options
class CorrelationCongruence(Loss):
    """||K(teacher) - K(student)||_F^2 / batch^2 of Gaussian kernel matrices of embeddings (Peng et al. 2019, eq. 6).

    K(x, y) = exp(-2 gamma) sum_{p <= order} (2 gamma)^p / p! (x . y)^p, the expansion of exp(-gamma |x - y|^2) for
    vectors of length 1 (eq. 9), so embeddings are normalised here. Widths may differ without a projection. The term
    lies within [0, 1] and is small, hence the weight, which is ours; Tian et al. 2020 use 0.02 for another term.
    """

    weight: Weight = 100.0
    gamma: Annotated[float, Field(description="of the Gaussian kernel", gt=0, le=1e6)] = 0.4
    order: Annotated[int, Field(description="highest power in the kernel's expansion", ge=1, le=100)] = 2

    needs_features: ClassVar[bool] = True

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        return F.mse_loss(self.kernel(student.embedding), self.kernel(teacher.embedding))

    def kernel(self, embedding: Tensor) -> Tensor:
        """[batch, batch] of [batch, width]."""
        directions = F.normalize(embedding)
        cosines = directions @ directions.T
        powers = [(2 * self.gamma) ** power / factorial(power) * cosines**power for power in range(self.order + 1)]
        return sum(powers) * torch.exp(cosines.new_tensor(-2 * self.gamma))
