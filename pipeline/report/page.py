"""The page of a study, and the environment that fills every template: whatever a name holds, it stays text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.report.by_group import group_tables
from pipeline.report.words import NOTHING, name_of, number, span

if TYPE_CHECKING:
    from pipeline import efficiency
    from pipeline.report.tables import Study


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["number"] = number
    return made


def render(template: str, values: Mapping[str, Any]) -> str:
    """A template of the package with its values, which are escaped; a value that is missing raises UndefinedError."""
    return _environment().get_template(template).render(values)


def study_page(
    study: Study,
    summary: Mapping[str, Any],
    *,
    drawn: Sequence[str],
    correlation: Sequence[Mapping[str, Any]],
    curves: efficiency.Places,
    text: str,
) -> str:
    """One HTML page beside the figures; nothing is fetched from elsewhere.

    Args:
        drawn: the figures that there are. text: the configuration.
    """
    from pipeline.report.tables import counted_seeds, full_list

    line, headline = summary["lines"][0], study.headline
    seeds = counted_seeds(line["seeds"])
    first, rest = _correlations(study, correlation)
    return render(
        "study.html.j2",
        {
            "title": study.name,
            "lead": f"{summary['dataset']}, {summary['classes']} classes, {summary['examples']:,} test examples, "
            f"{line['network']}, {seeds}",
            "summary": summary,
            "several": line["seeds"] > 1,
            "headline": headline,
            "drawn": drawn,
            "correlations": first,
            "more_correlations": rest,
            "speed_ups": _speed_ups(curves),
            "reference_errors": [[str(cell) for cell in row.values()] for row in summary["reference_errors"]],
            "groups_of": group_tables(study.audits),
            "cells": [(_title(title), full_list(study, title)) for title in study.cells],
            "configuration": text,
        },
    )


def _title(title: tuple[str, float, str]) -> str:
    return name_of(dict(zip(("pruning", "sparsity_asked", "recovery"), title, strict=True)))


def _correlations(study: Study, rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], list[list[str]]]:
    """Cells of the table of correlations: headline similarity, in the summary layer, with headline bias; all others."""
    from pipeline.similarities import SUMMARY_LAYER

    names = {shown.measure: shown for shown in study.shown}
    first, rest = [], []
    for row in rows:
        pair = [names.get(row[key]) for key in ("similarity", "measure")]
        cells = [shown.short if shown else row[key] for shown, key in zip(pair, ("similarity", "measure"), strict=True)]
        cells[0] += f", {row['layer']}"
        value, low, high = (row[key] for key in ("value", "low", "high"))
        cells += [
            row["statistic"],
            number(value, decimals=2),
            NOTHING if None in (low, high) else f"{number(low, decimals=2)} to {number(high, decimals=2)}",
            f"{row['n']}" + (f" ({row['left_out']} left out)" if row["left_out"] else ""),
        ]
        shown_first = all(shown is not None and shown.headline for shown in pair) and row["layer"] == SUMMARY_LAYER
        (first if shown_first else rest).append(cells)
    return first, rest


def _speed_ups(curves: efficiency.Places) -> list[list[str]]:
    from pipeline import efficiency

    return [
        [
            name_of(row),
            row["against"],
            efficiency.COSTS[row["cost"]],
            f"{number(row['accuracy_from'], decimals=4)} to {number(row['accuracy_to'], decimals=4)}",
            number(row["speed_up"]),
            span(row["lowest"], row["highest"]) or NOTHING,
            f"{row['seeds_that_overlap']} of {row['seeds']}",
        ]
        for row in (efficiency.speed_up_rows(curves) if curves else ())
    ]
