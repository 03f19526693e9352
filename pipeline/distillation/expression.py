"""From what a study says (``kd + at``) to the losses of an objective."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.distillation.loss import LOSSES, Loss
from pipeline.registry import WRONG, Mistakes, shown

NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
TERM = re.compile(rf"\s*(?P<sign>[+-]?)\s*(?P<number>{NUMBER})?\s*\*?\s*(?P<name>[A-Za-z_]\w*)")


def parse_losses(spec: str | Sequence[str | Mapping[str, Any]], where: str) -> tuple[Loss, ...]:
    """The losses that an expression or a list names, with a loss for the labels among them.

    - ``"0.1 ce + 0.9 kd"``: a number is the weight; a name without one has the default weight of the loss (the one of
      its paper).
    - ``[{name: kd, temperature: 8}, at]``: a mapping gives options; a string is an expression as above.
    - Labels: where nothing teaches them (``ce`` and its relatives), ``ce`` is added in front with weight 1. A loss that
      stands alone without a weight brings the weight of its paper instead: ``kd`` means ``0.1 ce + 0.9 kd``, while
      ``1 kd`` means ``1 ce + 1 kd`` and ``kd + at`` means ``1 ce + 0.9 kd + 1000 at``. ``0 ce + 1 kd`` leaves the
      labels out: losses of weight 0 count as named and are then dropped.

    Args:
        spec: the expression or the list.
        where: how the user would find the place, such as ``recoveries.0.losses``; it opens every message.

    Raises:
        UserError: no loss, an unknown name or option, one name twice, a negative weight, or all weights zero.
    """
    mistakes = Mistakes()
    losses = read_losses(spec, where, mistakes)
    mistakes.tell()
    return losses


def read_losses(spec: Any, where: str, mistakes: Mistakes) -> tuple[Loss, ...]:
    """As `parse_losses`; WRONG after noting what is wrong with each of the losses."""
    several = isinstance(spec, Sequence) and not isinstance(spec, str)
    parts = [(f"{where}.{number}", part) for number, part in enumerate(spec)] if several else [(where, spec)]
    before = len(mistakes)
    terms: list[tuple[str, dict[str, Any]]] = []
    for place, part in parts:
        if isinstance(part, str):
            terms += [(place, term) for term in _expression(part, place, mistakes)]
        elif isinstance(part, Mapping):
            terms.append((place, dict(part)))
        elif several or part is not None:
            said = "give a name such as kd, or {name: kd, temperature: 8}"
            mistakes.add(place, f"{shown(part)} is no loss; {said}")
    if not terms and len(mistakes) == before:
        mistakes.add(where, "no loss at all; name one, such as 'kd' or '0.1 ce + 0.9 kd'")
    losses = [LOSSES.read(term, place, mistakes) for place, term in terms]
    if len(mistakes) > before:
        return WRONG
    for index, loss in enumerate(losses):
        if any(loss.name == other.name for other in losses[:index]):
            mistakes.add(where, f"'{loss.name}' is named twice; name it once, with the weight that you mean")
    if not any(loss.weight for loss in losses):
        mistakes.add(where, "every weight is zero; give at least one loss a weight above 0")
    if len(mistakes) > before:
        return WRONG
    if not any(loss.uses_labels for loss in losses):
        plain = len(losses) == 1 and "weight" not in terms[0][1]
        losses.insert(0, LOSSES["ce"](weight=losses[0].label_weight if plain else 1.0))
    return tuple(loss for loss in losses if loss.weight)


def format_losses(losses: Sequence[Loss]) -> str:
    """The expression that reads back as these losses, as far as names and weights go: ``0.1 ce + 0.9 kd``."""
    return " + ".join(f"{loss.weight:g} {loss.name}" for loss in losses)


def _expression(text: str, where: str, mistakes: Mistakes) -> list[dict[str, Any]]:
    """``"0.1 ce + at"`` becomes ``[{name: ce, weight: 0.1}, {name: at}]``; empty after noting a mistake."""
    terms, position = [], 0
    while position < len(text.rstrip()):
        term = TERM.match(text, position)
        if term is None or (position == 0) != (term["sign"] != "+"):
            mistakes.add(where, f"{shown(text)} is not understood; write for example '0.1 ce + 0.9 kd'")
            return []
        if term["sign"] == "-":
            mistakes.add(where, f"{shown(text)} holds a negative weight; losses are added with weights above 0")
            return []
        terms.append({"name": term["name"]} | ({"weight": float(term["number"])} if term["number"] else {}))
        position = term.end()
    return terms
