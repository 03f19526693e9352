"""The losses a student may learn from, and the objective that adds them up.

Add a loss: subclass ``Loss`` as a frozen dataclass whose fields are its options, and register it in ``LOSSES`` in the
module of its kind: ``logits`` (reads logits), ``features`` (maps, example by example), ``relations`` (examples among
each other), ``contrast`` (against a memory) or ``balance`` (classes unequally). The tests pick it up and ask for the
slow loop of its equation.
"""

from pipeline.distillation import balance, contrast, features, logits, relations  # noqa: F401  (they register losses)
from pipeline.distillation.expression import format_losses, parse_losses, read_losses
from pipeline.distillation.loss import LOSSES, Labelled, Loss, TrainingSet
from pipeline.distillation.objective import ENSEMBLES, Objective
from pipeline.distillation.teacher import LogitsCache, Teacher

__all__ = [
    "ENSEMBLES",
    "LOSSES",
    "Labelled",
    "LogitsCache",
    "Loss",
    "Objective",
    "Teacher",
    "TrainingSet",
    "format_losses",
    "parse_losses",
    "read_losses",
]
