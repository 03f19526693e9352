"""What an audit is given: networks in one order, the names of classes, and the measures that they allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from pipeline.bias.measures import MEASURES, Measure
from pipeline.predictions import Predictions
from pipeline.registry import UserError, nearest


def choose(
    networks: Sequence[Predictions], wanted: Sequence[str | Measure] | None, smoothing: float, *, grouped: bool
) -> tuple[list[Measure], dict[str, str]]:
    """The measures that the inputs allow, and why others are missing; ``grouped``: there is a column of groups."""
    missing = {each: why_missing(each, networks, grouped=grouped) for each in wanted_measures(wanted, smoothing)}
    return [each for each, why in missing.items() if not why], {each.name: why for each, why in missing.items() if why}


def why_missing(measure: Measure, networks: Sequence[Predictions], *, grouped: bool = False) -> str:
    """Why it does not exist for these networks, or an empty string."""
    if measure.needs_groups and not grouped:
        return "needs groups"
    if measure.needs_logits and any(each.logits is None for each in networks):
        return "needs logits of both networks"
    if measure.needs_pairing and not all(each.paired for each in networks):
        return "needs predictions per example of both networks, not a confusion matrix"
    return ""


def wanted_measures(measures: Sequence[str | Measure] | None, smoothing: float) -> list[Measure]:
    """The measures asked for, each once, behind cev and sde, which are always there."""
    found = {name: _measure(name, smoothing) for name in ("cev", "sde")}
    asked: dict[str, Measure] = {}
    for each in measures if measures is not None else MEASURES:
        measure = _measure(each, smoothing)
        if asked.setdefault(measure.name, measure) != measure:
            raise UserError(f"measures: '{measure.name}' stands there twice with different options; choose one")
    return list((found | asked).values())


def _measure(wanted: str | Measure, smoothing: float) -> Measure:
    """By name, or as it is; a pseudo-count goes to every measure that knows one and has none of its own."""
    if isinstance(wanted, str):
        if wanted not in MEASURES:
            raise UserError(f"measures: '{wanted}' is no measure; {nearest(wanted, MEASURES)}")
        wanted = MEASURES[wanted]()
    knows = any(field.name == "smoothing" for field in fields(wanted))
    return replace(wanted, smoothing=smoothing) if knows and not wanted.smoothing else wanted


def refuse_one_label(network: Predictions, count: int) -> None:
    if count < 2 or not (network.labels != network.labels[0]).any():
        raise UserError(f"{network.source}: only one class among the labels; error rates need at least two")


def class_names(everything: Sequence[Predictions], classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """The names of the classes of all networks, numbers where nobody names them.

    Args:
        classes: names that count instead of the networks' own.

    Raises:
        UserError: networks that have other classes than the rest.
    """
    names, source = (tuple(classes), "classes") if classes is not None else (None, "")
    for each in everything:
        if each.classes is None:
            continue
        if names is None:
            names, source = each.classes, each.source
        elif names != each.classes and classes is None:
            missing = sorted(set(names) ^ set(each.classes))
            trouble = f"class '{missing[0]}' is in one of them only" if missing else "the order differs"
            raise UserError(
                f"{each.source}: classes differ from those of {source}: {trouble}; give the same classes to all"
            )
    widths = {each.logits.shape[1]: each for each in everything if each.logits is not None}
    count = len(names) if names is not None else max(each.class_count for each in everything)
    for width, each in widths.items():
        if width != count:
            raise UserError(
                f"{each.source}: logits of {width} classes, but there are {count}; give the same classes to all"
            )
    for each in everything:
        if each.class_count > count:
            raise UserError(
                f"{each.source}: class {each.class_count - 1} is out of range for {count} classes of {source}"
            )
    return names if names is not None else tuple(str(c) for c in range(count))


def in_one_order(everything: Sequence[Predictions]) -> list[Predictions]:
    """Puts examples in order of class where some input is a confusion matrix, its own at random within each class.

    Examples of one class that are matched at random are independent given the class, which is what not knowing the
    match amounts to. The shuffles are fixed.
    """
    if all(each.paired for each in everything):
        return list(everything)
    done: dict[int, Predictions] = {}
    for i, each in enumerate(everything):
        if id(each) in done:
            continue
        keys = np.random.default_rng(i).random(len(each.labels)) if not each.paired else np.arange(len(each.labels))
        order = np.lexsort([keys, each.labels])
        done[id(each)] = replace(
            each,
            labels=each.labels[order],
            predictions=each.predictions[order],
            logits=each.logits[order] if each.logits is not None else None,
            groups={name: column.take(order) for name, column in each.groups.items()},
        )
    return [done[id(each)] for each in everything]


def existing(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
