"""The page of an audit: what the template of it needs, worked out from the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bias import MEASURES
from pipeline.report.by_group import headline, inside_columns
from pipeline.report.page import render
from pipeline.report.words import NOTHING, number, span, verdict_text, yardstick_text

if TYPE_CHECKING:
    from pipeline.bias import Audit, Value

CLASS_COLUMNS = {
    "support": "support",
    "missed_reference": "missed before",
    "claimed_reference": "claimed before",
    "fnr_reference": "FNR before",
    "fnr": "after",
    "d_fnr": "change %",
    "fpr_reference": "FPR before",
    "fpr": "after",
    "d_fpr": "change %",
    "cev_share": "share of CEV",
    "excess_accuracy_gap": "excess gap",
    "p_value": "p",
}


def audit_page(
    result: Audit,
    *,
    reference: str,
    candidates: str,
    lead: str,
    rests_on: str,
    footnote: str,
    interval: str,
    classes: Sequence[dict[str, Any]],
) -> str:
    """The audit as one HTML page that loads nothing from elsewhere.

    Args:
        reference, candidates: what was compared.
        lead: what was found, in a sentence or two. rests_on: the classes and examples behind the values.
        footnote: what the intervals are for. interval: heading of their column.
        classes: rows of ``result.per_class`` in the order to show.
    """
    return render(
        "audit.html.j2",
        {
            "title": f"Audit of {candidates}",
            "against": f"{candidates} against {reference}",
            "lead": lead,
            "cards": _cards(result, rests_on),
            "scatter": scatter(result),
            "interval": interval,
            "floors": result.floor_networks > 0,
            "measures": [
                {"title": each.title, "value": each.value, "unit": each.unit, "better": each.better}
                | {"interval": _range(each), "floor": each.floor}
                | {"floor_range": span(each.floor.low, each.floor.high) if each.floor else NOTHING}
                | {
                    "over_floor": yardstick_text(beside),
                    "verdict": verdict_text(beside) or beside.get("note") or NOTHING,
                }
                for each in result.measures.values()
                for beside in (asdict(each.over_floor) if each.over_floor else {},)
            ],
            "footnote": footnote,
            "left_out": ", ".join(result.left_out),
            "reasons": "; ".join(sorted(set(result.left_out.values()))),
            "groups": result.groups or {},
            "group_columns": inside_columns(result.measures) | {"excess_accuracy_gap": "excess gap", "p_value": "p"},
            "between": {name: _between(found) for name, found in (result.groups or {}).items()},
            "classes": classes,
            "class_columns": {key: name for key, name in CLASS_COLUMNS.items() if all(key in row for row in classes)},
            "significance": result.significance,
            "notes": result.notes,
        },
    )


def _range(each: Value) -> str:
    if each.interval is None:
        return "withheld" if each.withheld else "no interval"
    return span(each.interval.low, each.interval.high)


def _cards(result: Audit, rests_on: str) -> list[tuple[str, str, str]]:
    """Title, value and a line below it; a share whose change is measured too is told before and after."""
    cards = []
    for kind in headline(result.measures):
        each, change = result.measures[kind.name], result.measures.get(f"{kind.name}_change")
        title = kind.short[:1].upper() + kind.short[1:]
        if kind.unit == "share" and change is not None and None not in (each.value, change.value):
            text = f"{100 * (each.value - change.value):.1f} → {100 * each.value:.1f}\u00a0%"
            ends = change.interval
            spread = f"change {100 * ends.low:+.1f} to {100 * ends.high:+.1f} points" if ends else ""
            cards.append((title, text, spread))
        else:
            noise = "without sampling noise " if kind.corrected else ""
            cards.append((title, number(each.value), f"{each.unit} · {noise}{_range(each)}"))
    return [*cards, ("Classes used", f"{result.classes_used} of {result.classes}", rests_on)]


def _between(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The measures that compare the groups of a column."""
    return [
        {"title": MEASURES[name].title, "range": span(*each["interval"]) if each["interval"] else "no interval"} | each
        for name, each in found["measures"].items()
        if name in MEASURES and MEASURES[name].needs_groups
    ]


def scatter(result: Audit) -> dict[str, Any] | None:
    """Places in a drawing of d_FNR over d_FPR: ticks, a point a class, centroid, two-sigma ellipse, equal change.

    None where no class has a relative change.
    """
    rows = [row for row in result.per_class if row["d_fpr"] is not None]
    if not rows:
        return None
    points = np.array([[row["d_fpr"], row["d_fnr"]] for row in rows])
    low, high = np.minimum(points.min(0), 0), np.maximum(points.max(0), 0)
    span_ = max(float((high - low).max()), 1.0) * 1.12
    middle = (low + high) / 2
    low, high = middle - span_ / 2, middle + span_ / 2  # one scale on both axes: the ellipse and the line are true
    left, top, side = 70, 16, 560

    def place(values: np.ndarray) -> tuple[float, float]:
        return left + side * float(values[0] - low[0]) / span_, top + side * float(high[1] - values[1]) / span_

    step = 10 ** math.floor(math.log10(span_ / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span_ / (step * factor) <= 7)
    ticks = []
    for axis in (0, 1):
        for tick in range(math.ceil(low[axis] / step), math.floor(high[axis] / step) + 1):
            at = place(np.where(np.arange(2) == axis, tick * step, low))[axis]
            ticks.append({"axis": axis, "at": at, "label": f"{tick * step:+,.0f}" if tick else "0", "zero": tick == 0})
    ellipse = None
    if len(points) > 2:
        lengths, axes = np.linalg.eigh(np.cov(points.T, ddof=0))
        radii = 2 * np.sqrt(np.maximum(lengths, 0)) * side / span_
        angle = -math.degrees(math.atan2(axes[1, 1], axes[0, 1]))
        ellipse = {"rx": float(radii[1]), "ry": float(radii[0]), "angle": angle}
    drawn = []
    for row, point in zip(rows, points, strict=True):
        x, y = place(point)
        flip = x > left + side * 0.85
        words = (
            f"{row['class']}\nFPR {number(row['fpr_reference'])} → {number(row['fpr'])} ({row['d_fpr']:+.0f} %)\n"
            f"FNR {number(row['fnr_reference'])} → {number(row['fnr'])} ({row['d_fnr']:+.0f} %)\n"
            f"{row['support']} examples"
        )
        name = {"name": row["class"][:24], "name_x": x - 9 if flip else x + 9, "anchor": "end" if flip else "start"}
        drawn.append({"x": x, "y": y, "hit": row["significant"], "words": words, **name})
    return {
        **{"left": left, "top": top, "side": side, "ticks": ticks, "points": drawn, "ellipse": ellipse},
        "alike": [place(np.full(2, value)) for value in (min(low), max(high))],
        "centre": place(points.mean(0)),
        "radius": 6.5 if len(rows) <= 40 else 5,
        "named": len(rows) <= 12,
    }
