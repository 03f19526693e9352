"""Contrastive representation distillation, with its memory bank."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distillation.loss import LOSSES, Labelled, Loss, Temperature, TrainingSet, Weight
from pipeline.models import Outputs
from pipeline.registry import UserError, options


class MemoryBank(nn.Module):
    """The last embedding of every training example, of student and teacher, and the projections that make them.

    Where an example stands in a batch twice, its last one counts. Examples that the training stream never holds keep
    their noise, so they are scored against by nobody.

    Attributes:
        student_memory, teacher_memory: [examples, width], rows of length about 1; they start as noise.
        student_scale, teacher_scale: the constants Z of the scores, set by the first batch, -1 before.
    """

    def __init__(self, student_width: int, teacher_width: int, width: int, training: TrainingSet) -> None:
        super().__init__()
        self.student_projection = nn.Linear(student_width, width)
        self.teacher_projection = nn.Linear(teacher_width, width)
        examples, bound = len(training.labels), (3 / width) ** 0.5
        for name in ("student", "teacher"):
            self.register_buffer(f"{name}_memory", torch.empty(examples, width).uniform_(-bound, bound))
            self.register_buffer(f"{name}_scale", torch.tensor(-1.0))
        # Occurring examples in the order of their class, where each class starts: derived, so not in the checkpoint.
        labels = training.labels.cpu()
        occurring = torch.arange(examples) if training.occurring is None else training.occurring.cpu()
        self.register_buffer("order", occurring[labels[occurring].argsort(stable=True)], persistent=False)
        self.register_buffer("counts", training.counts.cpu(), persistent=False)
        self.register_buffer("starts", self.counts.cumsum(0) - self.counts, persistent=False)

    def draw(self, batch: Labelled, negatives: int, *, same_class_positive: bool, other_classes: bool) -> Tensor:
        """Examples that each example is scored against, int64 [batch, 1 + negatives]: column 0 is the positive.

        same_class_positive: any example of the class instead of the example itself. other_classes: negatives from the
        other classes instead of from all examples. With replacement: every draw is uniform over what is allowed.
        """
        starts, counts = self.starts[batch.labels, None], self.counts[batch.labels, None]
        uniform = torch.rand(len(batch.labels), 1 + negatives, device=self.order.device, dtype=torch.float64)
        relatives = self.order[starts + (uniform[:, :1] * counts).long()]
        positives = relatives if same_class_positive else batch.ids[:, None]
        places = (uniform[:, 1:] * (len(self.order) - other_classes * counts)).long()
        if other_classes:
            places = places + counts * (places >= starts)  # steps over the class of the example
        return torch.cat([positives, self.order[places]], 1)

    def log_scores(self, embedding: Tensor, other: str, picks: Tensor, temperature: float) -> Tensor:
        """log(exp(embedding . memory / temperature) / Z) for the picked examples, [batch, 1 + negatives]."""
        memory, scale = getattr(self, f"{other}_memory"), getattr(self, f"{other}_scale")
        # All examples by one matrix product, then a choice: cheaper than to gather batch x negatives x width numbers.
        logits = (embedding @ memory.to(embedding.dtype).T / temperature).gather(1, picks)
        first = logits.detach().exp().mean() * len(self.order)
        scale = torch.where(scale < 0, first.to(scale.dtype), scale)
        if torch.is_grad_enabled():
            setattr(self, f"{other}_scale", scale)
        return logits - scale.log()

    def remember(self, name: str, ids: Tensor, embedding: Tensor, momentum: float) -> None:
        """Moves the rows of a memory towards the embeddings [batch, width] of the examples."""
        memory = getattr(self, f"{name}_memory")
        rows = momentum * memory[ids] + (1 - momentum) * embedding.detach().to(memory.dtype)
        # An example that stands here twice: both write its last row, since the order of equal writes is anybody's.
        places = torch.arange(len(ids), device=ids.device)
        last = torch.zeros(len(memory), dtype=places.dtype, device=ids.device).scatter_reduce(0, ids, places, "amax")
        rows = rows[last[ids]]
        # Not in place: the backward pass of this step still needs the old memory.
        setattr(self, f"{name}_memory", memory.index_copy(0, ids, F.normalize(rows)))


@LOSSES.register("crd")
@options
class Contrastive(Loss):
    """Noise-contrastive estimation of which teacher embedding belongs to which student's, and back (Tian et al. 2020).

    Eq. 18 with h of eq. 19, averaged over the batch, for both directions, against a memory bank of the other network's
    embeddings. Constants as in the released code (Z from the first batch, momentum 0.5); negatives are drawn with
    replacement where that code draws without.
    """

    weight: Weight = 0.8
    width: Annotated[int, Field(description="of the projected embeddings", ge=1, le=65_536)] = 128
    negatives: Annotated[
        int, Field(description="per example, at most as many as there are training examples", ge=1, le=100_000_000)
    ] = 16384
    temperature: Temperature = 0.07
    momentum: Annotated[float, Field(description="of the memory of embeddings", ge=0, lt=1)] = 0.5
    positives: Annotated[
        Literal["exact", "relaxed"], Field(description="exact: the example itself; relaxed: any example of its class")
    ] = "exact"
    noise: Annotated[
        Literal["exact", "relaxed"],
        Field(description="exact: negatives of other classes only; relaxed: any example, which needs no labels"),
    ] = "exact"

    needs_features: ClassVar[bool] = True

    def adapters(self, student: Outputs, teacher: Outputs, training: TrainingSet) -> MemoryBank:
        if self.noise == "exact" and training.counts.count_nonzero() < 2:
            raise UserError("losses: crd takes its noise from other classes and there is one; set noise: relaxed")
        return MemoryBank(student.embedding.shape[1], teacher.embedding.shape[1], self.width, training)

    def value(self, student: Outputs, teacher: Outputs, batch: Labelled, adapters: MemoryBank) -> Tensor:
        examples = len(adapters.order)
        picks = adapters.draw(
            batch,
            min(self.negatives, examples),
            same_class_positive=self.positives == "relaxed",
            other_classes=self.noise == "exact",
        )
        embeddings = {
            "student": F.normalize(adapters.student_projection(student.embedding)),
            "teacher": F.normalize(adapters.teacher_projection(teacher.embedding)),
        }
        total = 0.0
        for name, other in (("student", "teacher"), ("teacher", "student")):
            scores = adapters.log_scores(embeddings[name], other, picks, self.temperature)
            # h = s / (s + m / n): a logistic function of log s - log(m / n), with m negatives and n examples.
            odds = scores - torch.log(scores.new_tensor((picks.shape[1] - 1) / examples))
            total = total - (F.logsigmoid(odds[:, 0]) + F.logsigmoid(-odds[:, 1:]).sum(1)).mean()
        if torch.is_grad_enabled():
            for name, embedding in embeddings.items():
                adapters.remember(name, batch.ids, embedding, self.momentum)
        return total
