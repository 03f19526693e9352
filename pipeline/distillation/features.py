"""Losses that compare feature maps or embeddings, example by example."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distillation.align import aligned, paired
from pipeline.distillation.loss import LOSSES, Labelled, Loss, TrainingSet, Weight
from pipeline.models import Outputs
from pipeline.registry import UserError, options


@LOSSES.register("fitnet")
@options
class Hint(Loss):
    """Mean squared error between the teacher's map and a 1x1 regression from the student's (Romero et al. 2015, eq. 3).

    The squared norm is divided by its number of entries, as in Tian et al. 2020, whose weight 100 is used; the maps are
    averaged to one size where the paper's regressor shrinks them. The regression is linear; Tian et al.'s code puts
    BatchNorm and ReLU behind it. The paper trains the hint first and alone, as ``0 ce + 100 fitnet`` with a window from
    0 does: after the window the labels alone are learnt.
    """

    weight: Weight = 100.0
    block: Annotated[
        Annotated[int, Field(ge=-10_000, le=10_000)] | None,
        Field(description="index of the pair of blocks, negative from the end; null: the middle one, as in the paper"),
    ] = None

    needs_features: ClassVar[bool] = True

    def pair(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        pairs = aligned(student, teacher)
        index = len(pairs) // 2 if self.block is None else self.block
        if not -len(pairs) <= index < len(pairs):
            raise UserError(f"losses: fitnet.block {index} is refused; there are {len(pairs)} pairs of blocks")
        return pairs[index]

    def adapters(self, student: Outputs, teacher: Outputs, training: TrainingSet) -> nn.Module:
        ours, theirs = self.pair(student, teacher)
        return nn.Conv2d(ours.shape[1], theirs.shape[1], 1)

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module) -> Tensor:
        ours, theirs = self.pair(student, teacher)
        return F.mse_loss(adapters(ours), theirs)


@LOSSES.register("at")
@options
class Attention(Loss):
    """Squared difference of the normalised maps of activation energy, summed over blocks (Zagoruyko & Komodakis 2017).

    Energy: mean over channels of the squared activation. Follows the released code, mean over examples and positions of
    the squared difference, with its weight beta = 1000; eq. 2 of the paper has the norm itself and sums positions.
    """

    weight: Weight = 1000.0

    needs_features: ClassVar[bool] = True

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        pairs = aligned(student, teacher)
        energies = [[F.normalize(block.square().mean(1).flatten(1)) for block in pair] for pair in pairs]
        return sum(F.mse_loss(ours, theirs) for ours, theirs in energies)


@LOSSES.register("nst")
@options
class NeuronSelectivity(Loss):
    """Squared MMD between the two sets of normalised channels, kernel (x . y)^2, sum over blocks (Huang & Wang 2017).

    Mean over examples of eq. 7 with the polynomial kernel; weight as in Tian et al. 2020. Widths may differ.
    """

    weight: Weight = 50.0

    needs_features: ClassVar[bool] = True

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module | None) -> Tensor:
        def kernel(first: Tensor, second: Tensor) -> Tensor:
            return (first @ second.transpose(1, 2)).square().mean()

        total = 0.0
        for ours, theirs in aligned(student, teacher):
            ours, theirs = F.normalize(ours.flatten(2), dim=2), F.normalize(theirs.flatten(2), dim=2)
            total = total + kernel(ours, ours) + kernel(theirs, theirs) - 2 * kernel(ours, theirs)
        return total


@LOSSES.register("fsp")
@options
class SolutionFlow(Loss):
    """Mean squared difference of the flow matrices between consecutive blocks, summed over blocks (Yim et al. 2017).

    G[i, j] = mean over positions of first_i * second_j (eq. 1), the larger map max-pooled to the smaller as in the
    paper. The squared norm of eq. 2 is divided by the number of entries. The paper, and Tian et al. 2020 in their code,
    train it first and alone, with weight 1 (their 50 multiplies nothing); ``0 ce + 1 fsp`` with a window from 0 does
    that: after the window the labels alone are learnt. They take the stem's output as a block too, here the ends of
    blocks alone count. Where widths differ, the student's maps pass a trained 1x1 projection to the teacher's width
    first (ours: the paper has equal widths).

    Raises:
        UserError: fewer than two blocks in common.
    """

    needs_features: ClassVar[bool] = True

    def adapters(self, student: Outputs, teacher: Outputs, training: TrainingSet) -> nn.Module | None:
        widths = [(ours.shape[1], theirs.shape[1]) for ours, theirs in paired(student, teacher)]
        if len(widths) < 2:
            raise UserError("losses: fsp compares consecutive blocks and there is one; use another loss, such as at")
        if all(ours == theirs for ours, theirs in widths):
            return None
        return nn.ModuleList(
            [nn.Conv2d(*pair, 1, bias=False) if pair[0] != pair[1] else nn.Identity() for pair in widths]
        )

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.ModuleList | None) -> Tensor:
        ours, theirs = zip(*paired(student, teacher), strict=True)
        if adapters is not None:
            ours = [project(block) for project, block in zip(adapters, ours, strict=True)]
        flows = [[flow_matrix(*step) for step in zip(maps[:-1], maps[1:], strict=True)] for maps in (ours, theirs)]
        return sum(F.mse_loss(s, t) for s, t in zip(*flows, strict=True))


def flow_matrix(first: Tensor, second: Tensor) -> Tensor:
    """[batch, channels of first, channels of second]: mean over positions of the products of channels."""
    smaller = tuple(min(pair) for pair in zip(first.shape[2:], second.shape[2:], strict=True))
    first, second = (
        (block if block.shape[2:] == smaller else F.adaptive_max_pool2d(block, smaller)).flatten(2)
        for block in (first, second)
    )
    return first @ second.transpose(1, 2) / first.shape[2]


class Regression(nn.Module):
    """A teacher's map as a Gaussian given the student's: three 1x1 convolutions and a variance per channel."""

    def __init__(self, student_channels: int, teacher_channels: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        softplus_inverse = torch.tensor(variance, dtype=torch.float64).expm1().log().item()
        self.raw_variance = nn.Parameter(torch.full((teacher_channels, 1, 1), softplus_inverse))

    def variance(self) -> Tensor:
        """[channels, 1, 1], above 0."""
        return F.softplus(self.raw_variance) + 1e-5


@LOSSES.register("vid")
@options
class VariationalInformation(Loss):
    """-log N(teacher's map; mean(student's map), variance of the channel), summed over blocks (Ahn et al. 2019, eq. 5).

    Mean over examples, channels and positions, without the constant; regression and start variance as in the released
    code. It has no floor at 0: a good fit is negative.
    """

    weight: Weight = 1.0
    initial_variance: Annotated[float, Field(description="of a channel, before training", gt=0, le=100)] = 5.0

    needs_features: ClassVar[bool] = True

    def adapters(self, student: Outputs, teacher: Outputs, training: TrainingSet) -> nn.Module:
        pairs = aligned(student, teacher)
        return nn.ModuleList([Regression(s.shape[1], t.shape[1], self.initial_variance) for s, t in pairs])

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.ModuleList) -> Tensor:
        total = 0.0
        for regression, (ours, theirs) in zip(adapters, aligned(student, teacher), strict=True):
            variance = regression.variance()
            total = total + 0.5 * ((regression.mean(ours) - theirs).square() / variance + variance.log()).mean()
        return total


def convolutions(*widths: int) -> nn.Sequential:
    """3x3 convolutions with BatchNorm (of the batch, nothing is remembered) and leaky ReLU."""
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        norm = nn.BatchNorm2d(after, track_running_stats=False)
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), norm, nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


@LOSSES.register("ft")
@options
class FactorTransfer(Loss):
    """L1 between normalised factors, the teacher's by an autoencoder (Kim et al. 2018, eq. 2).

    Mean over examples and entries of the last pair of blocks; weight 200 as in Tian et al. 2020. The paper trains the
    autoencoder beforehand; here it learns beside the student, from its own reconstruction error alone (eq. 1), which
    enters the loss ``reconstruction`` times (1 / 200: with the weight, once). No gradient of the transfer reaches it.
    """

    weight: Weight = 200.0
    rate: Annotated[float, Field(description="factor channels as a share of the teacher's", gt=0, le=100)] = 0.5
    reconstruction: Annotated[float, Field(description="factor of the autoencoder's own error", gt=0, le=1e12)] = 0.005

    needs_features: ClassVar[bool] = True

    def adapters(self, student: Outputs, teacher: Outputs, training: TrainingSet) -> nn.Module:
        ours, theirs = (block.shape[1] for block in aligned(student, teacher)[-1])
        factors = max(1, round(self.rate * theirs))
        return nn.ModuleDict(
            {
                "encoder": convolutions(theirs, theirs, factors),
                "decoder": nn.Sequential(convolutions(factors, theirs), nn.Conv2d(theirs, theirs, 3, padding=1)),
                "translator": convolutions(ours, ours, factors),
            }
        )

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.ModuleDict) -> Tensor:
        ours, theirs = aligned(student, teacher)[-1]
        factors = adapters["encoder"](theirs)
        error = F.mse_loss(adapters["decoder"](factors), theirs)
        maps = adapters["translator"](ours), factors.detach()
        return F.l1_loss(*(F.normalize(factor.flatten(1)) for factor in maps)) + self.reconstruction * error


@LOSSES.register("ab")
@options
class ActivationBoundaries(Loss):
    """Squared hinge that puts the student on the teacher's side of each activation boundary (Heo et al. 2019, eq. 6).

    Mean over examples, sum over channels and positions, weight of block l of L: 2^(l - L). The student's maps pass a
    1x1 connector with BatchNorm, at equal widths too, because blocks end after their ReLU; a teacher's unit is active
    where its map is above 0. The paper trains the term first and alone, as ``0 ce + 0.003 ab`` with a window from 0
    does: after the window the labels alone are learnt. Weight 0.003 as in the released code.
    """

    weight: Weight = 0.003
    margin: Annotated[float, Field(description="how far from the boundary a unit has to be", gt=0, le=1e6)] = 1.0

    needs_features: ClassVar[bool] = True

    def adapters(self, student: Outputs, teacher: Outputs, training: TrainingSet) -> nn.Module:
        widths = [(ours.shape[1], theirs.shape[1]) for ours, theirs in aligned(student, teacher)]
        norms = [nn.BatchNorm2d(theirs, track_running_stats=False) for _, theirs in widths]
        return nn.ModuleList(
            [nn.Sequential(nn.Conv2d(*pair, 1, bias=False), norm) for pair, norm in zip(widths, norms, strict=True)]
        )

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.ModuleList) -> Tensor:
        total, pairs = 0.0, aligned(student, teacher)
        for level, (connector, (ours, theirs)) in enumerate(zip(adapters, pairs, strict=True), start=1):
            wrong = F.relu(self.margin - torch.where(theirs > 0, 1, -1) * connector(ours))
            total = total + 2.0 ** (level - len(pairs)) * wrong.square().sum() / len(ours)
        return total


@LOSSES.register("srd")
@options
class ProjectedEmbedding(Loss):
    """log sum |standardised projection of the student's embedding - the teacher's|^4 (Miles & Mikolajczyk 2024, eq. 8).

    The sum is over examples and entries; both embeddings are standardised over the batch, the student's after a linear
    projection. The feature method that needs nothing but embeddings, so it takes any pair of architectures.
    """

    weight: Weight = 2.0
    exponent: Annotated[float, Field(description="of the differences", gt=0, le=100)] = 4.0

    needs_features: ClassVar[bool] = True

    def adapters(self, student: Outputs, teacher: Outputs, training: TrainingSet) -> nn.Module:
        return nn.Linear(student.embedding.shape[1], teacher.embedding.shape[1], bias=False)

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: nn.Module) -> Tensor:
        ours, theirs = standardized(adapters(student.embedding)), standardized(teacher.embedding)
        # The small number: a batch in which the two agree to the last bit must not give -inf.
        return ((ours - theirs).abs().pow(self.exponent).sum() + 1e-12).log()


def standardized(embedding: Tensor) -> Tensor:
    """Each column of [batch, width] with mean 0 and variance 1, as BatchNorm does in training."""
    return (embedding - embedding.mean(0)) / (embedding.var(0, correction=0) + 1e-5).sqrt()
