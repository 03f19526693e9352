"""How each measure is shown: collected from where it is registered, so that nothing in a report names one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from pipeline.bias import MEASURES
from pipeline.pruning.size import QUANTITIES
from pipeline.similarities import SIMILARITIES
from pipeline.table import Row


@dataclass(frozen=True)
class Shown:
    """One measure as a reader meets it.

    kind: of its rows in the long table. short: its column heading. better: lower, higher, near 1 or either way.
    headline: its place in the main tables; 0: in the full lists alone.
    compares: it says how far a network is from its dense parent, so that dense pairs have a floor of it.
    comparison: of two recoveries, and with a yardstick: as a ``ratio`` or a ``difference``.
    margin: up to which ratio or difference a change counts as none; None: none is stated.
    corrected: the measure that estimates this one without sampling noise, if any.
    digits: behind the point; None: three significant ones.
    complement: what 100 (1 - value) is called, for an axis that spreads values close to 1; empty: the value is drawn.
    """

    kind: str
    measure: str
    title: str
    short: str
    unit: str
    better: str
    headline: int = 0
    compares: bool = False
    comparison: str = "difference"
    margin: float | None = None
    corrected: str = ""
    digits: int | None = None
    complement: str = ""
    equation: str = ""
    source: str = ""


def registered() -> dict[str, Any]:
    """What the measures of each kind are declared in, by kind, in the order of the columns of a table."""
    return {"bias": MEASURES, "similarity": SIMILARITIES, "size": QUANTITIES, "latency": QUANTITIES}


def described(kind: str, measure: str, rows: Sequence[Row]) -> Shown:
    """What was declared of a measure; of one that no registry here knows, what its rows say."""
    registry, declared = registered()[kind], None
    if measure in registry:
        declared = registry[measure]
    row = next((row for row in rows if (row["kind"], row["measure"]) == (kind, measure)), {})
    said = {
        "title": measure,
        "short": measure,
        "unit": row.get("unit") or "",
        "better": row.get("better") or "",
        "compares": kind == "bias",
    }
    for field in fields(Shown)[2:]:
        value = getattr(declared, field.name, None)
        if value not in (None, ""):
            said[field.name] = value
    return Shown(kind, measure, **said)


def catalogue(rows: Sequence[Row]) -> list[Shown]:
    """Every measure that the rows hold, the headline measures first and in order."""
    found = []
    for kind, registry in registered().items():
        present: dict[str, Row] = {}
        for row in rows:
            if row["kind"] == kind:
                present.setdefault(row["measure"], row)
        known = [name for name in registry if name in present]
        others = [name for name in present if name not in registry]
        found += [described(kind, name, [present[name]]) for name in (*known, *others)]
    return sorted(found, key=lambda shown: shown.headline or float("inf"))


def headline_of(kind: str, rows: Sequence[Row]) -> list[Shown]:
    """The headline measures that are declared of a kind, in order, whether or not the rows hold them."""
    found = [described(kind, name, rows) for name in registered()[kind]]
    return sorted((shown for shown in found if shown.headline), key=lambda shown: shown.headline)
