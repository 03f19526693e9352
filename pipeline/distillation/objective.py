"""The sum of losses that a training loop minimises, the window in which it asks teachers, a check that it teaches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.distillation.loss import LOSSES, Labelled, Loss, TrainingSet, widen
from pipeline.models import Outputs
from pipeline.registry import UserError

ENSEMBLES = ("average", "random")


class Objective(nn.Module):
    """What the training loop optimises: a weighted sum of losses over the student and its teachers.

    Its parameters are those of the adapters (give them to the optimizer beside the network's) and its ``state_dict`` is
    what a checkpoint needs: adapters, memory banks, ``teacher_calls`` and what ``check_progress`` knows, all of them
    tensors.

    Several teachers: ``average`` asks all of them and averages each term over them (for ``kd`` that has the gradient of
    the averaged soft targets, and it works for teachers of unequal shapes); ``random`` asks one per step, drawn by
    (seed, step) alone (Fukuda et al. 2017), at the cost of one teacher. Each teacher has adapters of its own.

    Window: teachers are asked in the steps from ``round(start * steps)`` up to but without ``round(end * steps)``.
    Outside, the student learns from labels alone: the weights of the losses that need no teacher are scaled to the sum
    1 (``0.1 ce + 0.9 kd`` becomes ``1 ce``, so that the step size does not collapse), ``ce`` where there are none.

    Random numbers that a loss draws are a function of (seed, step), so a resumed run draws the same ones.

    Args:
        losses: what ``parse_losses`` gave.
        teachers: called with a batch, give ``Outputs``; see ``Teacher``.
        window: shares of the steps, 0 <= start < end <= 1.
        ensemble: ``average`` or ``random``.
        seed: of the adapters' initial values, the teachers' order and the losses' draws.

    Attributes:
        teacher_calls: int64 [teachers], how often each teacher was asked in training.

    Raises:
        UserError: no loss, a loss that needs a teacher without one, a window or an ensemble that does not exist, or
            a loss that reads features of a teacher with cached logits.
    """

    def __init__(
        self,
        losses: Sequence[Loss],
        teachers: Sequence[Callable[[Labelled], Outputs]] = (),
        *,
        window: tuple[float, float] = (0.0, 1.0),
        ensemble: Literal["average", "random"] = "average",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.losses = tuple(losses)
        # A tuple hides the teachers from parameters(), state_dict() and train().
        self.teachers = tuple(teachers) if any(loss.needs_teacher for loss in losses) else ()
        self.window = (float(window[0]), float(window[1]))
        self.ensemble = ensemble
        self.seed = seed
        if not self.losses:
            raise UserError("losses: none given; name one, such as 'kd'")
        lonely = [loss.name for loss in self.losses if loss.needs_teacher]
        if lonely and not self.teachers:
            raise UserError(f"losses: '{lonely[0]}' needs a teacher and there is none; name one under teachers")
        if not 0 <= self.window[0] < self.window[1] <= 1:
            raise UserError(f"window: {list(self.window)} is refused; give two rising shares of the steps in [0, 1]")
        if ensemble not in ENSEMBLES:
            raise UserError(f"ensemble: '{ensemble}' is unknown; known: {', '.join(ENSEMBLES)}")
        for loss in self.losses:
            if loss.needs_features and any(getattr(teacher, "logits_only", False) for teacher in self.teachers):
                raise UserError(f"losses: '{loss.name}' reads features, which cached logits lack; switch the cache off")
        label_losses = [loss for loss in self.losses if not loss.needs_teacher] or [LOSSES["ce"](weight=1.0)]
        total = sum(loss.weight for loss in label_losses)
        self._outside = [(loss, loss.weight / total) for loss in label_losses]
        self.adapters = nn.ModuleDict()
        self.register_buffer("teacher_calls", torch.zeros(len(self.teachers), dtype=torch.int64))
        # Per term, by name: the largest absolute value so far, and the steps it entered.
        self._terms = sorted({loss.name for loss in (*self.losses, *label_losses)})
        self.register_buffer("largest_terms", torch.zeros(len(self._terms)))
        self.register_buffer("evaluated_terms", torch.zeros(len(self._terms), dtype=torch.int64))
        self._evaluated: dict[tuple[str, int], int] = {}  # (loss, teacher) -> times, in this process
        self._gradients: dict[str, Tensor] = {}  # adapter parameter -> largest absolute gradient, in this process
        self._watches: list[torch.utils.hooks.RemovableHandle] = []

    def prepare(self, student: Outputs, batch: Labelled, training: TrainingSet) -> None:
        """Builds the adapters from one batch; to be called once, before the optimizer is made or a state is loaded.

        Args:
            student: what the student shows for ``batch``; shapes and device are read.
            batch: any batch of the training split.
            training: labels of the whole training split and the number of classes.

        Raises:
            UserError: a teacher with another number of classes than the student, one that cannot read the images, or
                outputs that a loss cannot align.
        """
        device = student.logits.device
        shown = [self._first_answer(index, batch) for index in range(len(self.teachers))]
        for index, teacher in enumerate(shown):
            theirs, ours = teacher.logits.shape[1], student.logits.shape[1]
            if theirs != ours:
                raise UserError(
                    f"teachers[{index}]: has {theirs} classes, the student {ours}; take one of the same data"
                )
        with self._randomness(device, "adapters"):
            for loss in self.losses:
                teachers = shown if loss.needs_teacher else [None]
                parts = [loss.adapters(student, teacher, training) for teacher in teachers]
                if any(part is not None for part in parts):
                    self.adapters[loss.name] = nn.ModuleList(parts)
        self.to(device, widen(student.logits).dtype)
        # What cannot be computed shows now and not hours later; without gradients nothing is remembered.
        with torch.no_grad(), self._randomness(device, "trial"):
            for loss in self.losses:
                for index, teacher in enumerate(shown if loss.needs_teacher else [None]):
                    loss(student, teacher, batch, self._adapter(loss, index))
        self._watch()

    def forward(self, student: Outputs, batch: Labelled, *, step: int, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one training step.

        Args:
            student: the student's outputs for ``batch``, with gradients.
            batch: inputs, labels and ids.
            step: 0 .. steps - 1, counted over the whole training.
            steps: of the whole training.

        Returns:
            The total, a scalar; and what to log: each term with its weight, by the name of the loss, and
            ``teacher_accuracy``, the mean over the teachers asked. All detached and left on the device. Outside the
            window the teachers' entries are absent.
        """
        asked = self.asked(step=step, steps=steps)
        with torch.no_grad():
            shown = {index: self.teachers[index](batch) for index in asked}
            for index in asked:
                self.teacher_calls[index] += 1
        inside = asked or not self.teachers
        weighted = [(loss, loss.weight) for loss in self.losses] if inside else self._outside
        terms: dict[str, Tensor] = {}
        with self._randomness(student.logits.device, step):
            for loss, weight in weighted:
                teachers = asked if loss.needs_teacher else [0]
                values = [loss(student, shown.get(index), batch, self._adapter(loss, index)) for index in teachers]
                terms[loss.name] = weight * sum(values) / len(values)
                for index in teachers:
                    self._evaluated[loss.name, index] = self._evaluated.get((loss.name, index), 0) + 1
        total = sum(terms.values())
        logged = {name: term.detach() for name, term in terms.items()}
        for name, term in logged.items():
            place = self._terms.index(name)
            self.largest_terms[place] = torch.maximum(self.largest_terms[place], term.abs())
            self.evaluated_terms[place] += 1
        if asked:
            right = [(outputs.logits.argmax(1) == batch.labels).float().mean() for outputs in shown.values()]
            logged["teacher_accuracy"] = sum(right) / len(right)
        return total, logged

    def asked(self, *, step: int, steps: int) -> list[int]:
        """The indices of the teachers that are asked in a step, none outside the window; no state is read."""
        start, end = self._bounds(steps)
        if not self.teachers or not start <= step < end:
            return []
        if self.ensemble == "random":
            return [_hash(self.seed, "teacher", step) % len(self.teachers)]
        return list(range(len(self.teachers)))

    def teaching_steps(self, steps: int, first: int = 0) -> range:
        """The steps, from ``first`` on, in which teachers are asked.

        Raises:
            UserError: there are none, so that the window would teach nothing.
        """
        start, end = self._bounds(steps)
        if max(start, first) >= end:
            raise UserError(
                f"window: {list(self.window)} holds none of the steps {first} to {steps - 1} of this training; "
                "give a longer window or more epochs"
            )
        return range(max(start, first), end)

    def _bounds(self, steps: int) -> tuple[int, int]:
        start, end = self.window
        return round(start * steps), round(end * steps)

    def check_progress(self, *, steps: int = 20) -> None:
        """Stops a training that does not train what it says; the loop calls it now and then, such as after each epoch.

        The steps themselves only keep a running maximum on the device. The watch over gradients ends with the first
        check that saw every adapter at work.

        Args:
            steps: terms and adapters that were evaluated less often are not judged yet; 1 at the end of a training.

        Raises:
            UserError: a term that was exactly zero in every step, or an adapter's parameter that never received a
                gradient other than zero; it is named.
        """
        for name, largest, count in zip(
            self._terms, self.largest_terms.tolist(), self.evaluated_terms.tolist(), strict=True
        ):
            if count >= steps and largest == 0:
                raise UserError(f"losses: '{name}' was exactly zero in {count} steps, so it teaches nothing; drop it")
        if not self._watches:
            return
        judged = 0
        parameters = dict(self.adapters.named_parameters())
        for parameter in parameters:
            loss, index = parameter.split(".")[:2]
            if self._evaluated.get((loss, int(index)), 0) < steps:
                continue
            judged += 1
            if parameter not in self._gradients or self._gradients[parameter].item() == 0:
                raise UserError(
                    f"losses: the trainable part '{parameter}' received no gradient in {steps} steps; "
                    "is objective.parameters() in the optimizer, and is the total what is differentiated?"
                )
        if judged == len(parameters):
            for watch in self._watches:
                watch.remove()
            self._watches.clear()

    def _first_answer(self, index: int, batch: Labelled) -> Outputs:
        try:
            with torch.no_grad():
                return self.teachers[index](batch)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"teachers[{index}]: cannot read images of shape {list(batch.inputs.shape[1:])} ({reason}); "
                "take one that was trained on the same data"
            ) from error

    def _adapter(self, loss: Loss, teacher: int) -> nn.Module | None:
        return self.adapters[loss.name][teacher] if loss.name in self.adapters else None

    def _watch(self) -> None:
        def note(name: str, parameter: Tensor) -> None:
            largest = parameter.grad.detach().abs().amax()
            self._gradients[name] = torch.maximum(self._gradients.get(name, largest), largest)

        for name, parameter in self.adapters.named_parameters():
            self._watches.append(parameter.register_post_accumulate_grad_hook(partial(note, name)))

    @contextmanager
    def _randomness(self, device: torch.device, *parts: int | str) -> Iterator[None]:
        """Inside, torch's own generators are seeded by (seed, parts); what they were before is put back."""
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(_hash(self.seed, *parts))
            yield


def _hash(*parts: int | str) -> int:
    """63 bits that depend on every part; sums of seeds and steps would collide."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
