"""The tables of groups, as the page of a study and that of an audit show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.bias import MEASURES, Measure
from pipeline.report.words import NOTHING, name_of, number, span

BESIDE = ("worst_recall", "flips")  # what stands there beside the headline measures

Title = tuple[str, float, str]  # pruning, sparsity asked, recovery


def headline(names: Iterable[str]) -> list[type[Measure]]:
    """The headline measures among some, in order."""
    found = [MEASURES[name] for name in names if name in MEASURES and MEASURES[name].headline]
    return sorted(found, key=lambda kind: kind.headline)


def inside_columns(names: Iterable[str]) -> dict[str, str]:
    """Heading of each column of a table of groups: the headline measures with their changes, and those beside them."""
    names, columns = set(names), {"support": "support"}
    for kind in [*headline(names), *(MEASURES[name] for name in BESIDE if name in names)]:
        columns[kind.name] = kind.short.replace("_", " ")
        if f"{kind.name}_change" in names:
            columns[f"{kind.name}_change"] = f"{kind.short} change"
    return columns


def group_tables(audits: Mapping[Title, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each column of groups two tables of text: ``inside`` (a row a cell and group), ``between`` (a row a cell).

    Args:
        audits: as JSON, by cell.
    """
    first = next(iter(audits.values()))["groups"] or {}
    return [
        {
            "column": column,
            "inside": _inside([(_name(title), audit["groups"][column]) for title, audit in audits.items()]),
            "between": _between([(_name(title), audit["groups"][column]) for title, audit in audits.items()]),
            "left_out": sorted({f"{MEASURES[name].title}: {why}" for name, why in first[column]["left_out"].items()}),
        }
        for column in first
    ]


def _name(title: Title) -> str:
    return name_of(dict(zip(("pruning", "sparsity_asked", "recovery"), title, strict=True)))


def _inside(cells: list[tuple[str, dict[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    columns = inside_columns(cells[0][1]["per_group"][0])
    rows = []
    for row in cells[0][1]["per_group"]:
        known = {"support": row["support"]}
        if None not in (row.get("accuracy"), row.get("accuracy_change")):
            known["accuracy"] = row["accuracy"] - row["accuracy_change"]  # of the dense networks, the same in each cell
        rows.append(["dense", row["group"], *(_text(name, known.get(name)) for name in columns)])
    for cell, found in cells:
        rows += [[cell, row["group"], *(_text(name, row[name]) for name in columns)] for row in found["per_group"]]
    return ["network", "group", *columns.values()], rows


def _between(cells: list[tuple[str, dict[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    measures = [name for name in cells[0][1]["measures"] if name in MEASURES and MEASURES[name].needs_groups]
    rows = [["dense", *(_text(name, cells[0][1]["measures"][name]["reference"]) for name in measures)]]
    for cell, found in cells:
        values = [found["measures"][name] for name in measures]
        rows.append(
            [
                cell,
                *(
                    _text(name, each["value"]) + (f" ({span(*each['interval'])})" if each["interval"] else "")
                    for name, each in zip(measures, values, strict=True)
                ),
            ]
        )
    return ["network", *(MEASURES[name].title for name in measures)], rows


def _text(name: str, value: float | None) -> str:
    if name == "support":
        return f"{value:,}"
    return NOTHING if value is None else number(value, decimals=MEASURES[name].digits)
