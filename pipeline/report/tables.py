"""The long table as its readers need it: by cell and network, as files, and as the summary with the main table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import statistics
from pipeline.report.catalogue import Shown, catalogue, headline_of, registered
from pipeline.report.words import NOTHING, beyond, claimed, notes, number, plus_minus, sentences, span
from pipeline.similarities import SUMMARY_LAYER
from pipeline.table import RUN, Row, grouped, write_long, write_rows

Title = tuple[str, float, str]  # pruning, sparsity asked, recovery
DENSE: Title = ("dense", 0.0, "none")
SPREAD = ("bias", "similarity")  # what is measured of every seed, so that its spread says something


@dataclass(frozen=True)
class Network:
    """One network of a study.

    run: the columns that name it. folder: where it is stored. history: its training, a record per epoch.
    values: by measure; of a similarity, that of the summary layer. None: it does not exist.
    """

    run: Row
    folder: str
    history: list[dict[str, float]]
    values: dict[str, float | None]


@dataclass(frozen=True)
class Study:
    """A study, sorted.

    shown: every measure, the headline ones first. cells: the networks of each, the dense networks first.
    measured: the rows of a cell, kind, measure and layer. audits: as JSON, by cell.
    floors: by measure and layer, what dense networks show among each other: mean, pairs, and low and high (central
    95 %) or, where the table has no summary of them, spread.
    """

    name: str
    rows: list[Row]
    shown: list[Shown]
    cells: dict[Title, list[Network]]
    measured: dict[tuple, list[Row]]
    audits: dict[Title, dict[str, Any]]
    floors: dict[tuple[str, str | None], dict[str, float | int | None]]

    @property
    def headline(self) -> list[Shown]:
        """The measures of the main tables, in order."""
        return [shown for shown in self.shown if shown.headline]

    @property
    def networks(self) -> list[Network]:
        """All of them, dense ones first."""
        return [network for networks in self.cells.values() for network in networks]

    def whole(self, title: Title, kind: str, measure: str, layer: str | None = None) -> Row:
        """The row of all networks of a cell together; empty where there is none."""
        rows = self.measured.get((*title, kind, measure, layer), ())
        return next((row for row in rows if row.get("seed") is None), {})

    def floor(self, shown: Shown) -> dict[str, float | int | None] | None:
        """Of a measure that has one; of a similarity, in the summary layer."""
        return self.floors.get((shown.measure, SUMMARY_LAYER if shown.kind == "similarity" else None))


def gather(
    name: str,
    rows: Sequence[Row],
    *,
    histories: Mapping[tuple, list[dict[str, float]]],
    audits: Sequence[tuple[Title, dict[str, Any]]],
    folders: Mapping[tuple, str],
) -> Study:
    """Sorts the rows; see `pipeline.report.write` for the arguments."""
    whole = [row for row in rows if row.get("group") is None]  # those of groups are in rows.csv alone
    shown = catalogue(whole)
    found: dict[Title, dict[int, Network]] = {title: {} for title in (DENSE, *(title for title, _ in audits))}
    for row in whole:
        if row["kind"] not in registered() or row.get("seed") is None:
            continue
        title, seed = tuple(row[key] for key in ("pruning", "sparsity_asked", "recovery")), row["seed"]
        networks = found.setdefault(title, {})
        if seed not in networks:
            run, key = {column: row.get(column) for column in RUN}, (*title, seed)
            networks[seed] = Network(run, folders.get(key, ""), list(histories.get(key, ())), {})
        if row["kind"] != "similarity" or row.get("layer") == SUMMARY_LAYER:
            networks[seed].values[row["measure"]] = row["value"]
    return Study(
        name=name,
        rows=list(rows),
        shown=shown,
        cells={title: list(networks.values()) for title, networks in found.items() if networks},
        measured=grouped(whole, "pruning", "sparsity_asked", "recovery", "kind", "measure", "layer"),
        audits=dict(audits),
        floors=_floors(whole),
    )


def _floors(rows: Sequence[Row]) -> dict[tuple[str, str | None], dict[str, Any]]:
    found = {}
    for (measure, layer), group in grouped((row for row in rows if row["kind"] == "floor"), "measure", "layer").items():
        pairs = [row["value"] for row in group if row.get("seed") is not None and row["value"] is not None]
        summary = next((row for row in group if row.get("seed") is None), None)
        if not pairs:
            continue
        mean, spread = mean_and_spread(pairs)
        if summary is not None and summary["value"] is not None:
            ends = {"mean": summary["value"], "low": summary["low"], "high": summary["high"]}
        else:
            ends = {"mean": mean, "spread": spread}
        found[measure, layer] = ends | {"pairs": len(pairs)}
    return found


def mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where they do not exist (JSON knows no NaN)."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None


# ---------------------------------------------------------------------------------------------- files


def write_tables(folder: Path, study: Study, correlation: Sequence[Row]) -> None:
    """rows.csv, runs.csv, measures.csv, per_class.csv and correlation.csv."""
    write_long(folder / "rows.csv", study.rows)
    write_rows(folder / "runs.csv", run_rows(study))
    write_rows(folder / "measures.csv", measure_rows(study))
    write_rows(folder / "per_class.csv", class_rows(study))
    write_rows(folder / "correlation.csv", correlation)


def correlation_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows of correlations with numbers for numbers, also where they come as text; None for what does not exist."""

    def known(value: float | str | None) -> float | None:
        found = math.nan if value in (None, "") else float(value)
        return found if math.isfinite(found) else None

    numbers = ("value", "low", "high", "p")
    return [
        {**row, **{key: known(row[key]) for key in numbers}, **{key: int(row[key]) for key in ("n", "left_out")}}
        for row in rows
    ]


def run_rows(study: Study) -> list[Row]:
    """The wide view: one row per network, and in it one value per measure that single networks have."""
    first = [shown.measure for kind in SPREAD for shown in headline_of(kind, study.rows)]
    first += dict.fromkeys(name for kind in ("size", "latency") for name in registered()[kind])
    present = dict.fromkeys(name for network in study.networks for name in network.values)
    others = [shown.measure for shown in study.shown if shown.measure in present and shown.measure not in first]
    whole = {shown.measure for shown in study.shown if shown.digits == 0}

    def value(network: Network, name: str) -> float | int | None:
        found = network.values.get(name)
        return int(found) if name in whole and found is not None and found == int(found) else found

    return [
        {"model" if column == "network" else column: value for column, value in network.run.items()}
        | {name: value(network, name) for name in first}
        | {"folder": network.folder}
        | {name: value(network, name) for name in others}
        for network in study.networks
    ]


def measure_rows(study: Study) -> list[Row]:
    """One row per cell and bias measure: value, interval, floor, and the value of averaged sums (published)."""
    rows = []
    for (pruning, sparsity, recovery), audit in study.audits.items():
        for name, value in audit["measures"].items():
            low, high = value["interval"] or (None, None)
            floor = value["floor"] or {}
            rows.append(
                {"pruning": pruning, "sparsity_asked": sparsity, "recovery": recovery, "measure": name}
                | {"value": value["value"], "low": low, "high": high, "published": value["published"]}
                | {f"floor_{key}": floor.get(key) for key in ("mean", "high")}
                | {key: floor.get(key) for key in ("excess", "percentile")}
                | {"unit": value["unit"], "better": value["better"]}
            )
    return rows


def class_rows(study: Study) -> list[Row]:
    """One row per cell and class."""
    return [
        {"pruning": pruning, "sparsity_asked": sparsity, "recovery": recovery, **row}
        for (pruning, sparsity, recovery), audit in study.audits.items()
        for row in audit["per_class"]
    ]


# ---------------------------------------------------------------------------------------------- summary


def summarise(
    study: Study, counted: Mapping[str, Sequence[str]], claims: Sequence[statistics.Claim] = ()
) -> dict[str, Any]:
    """What summary.json holds: one line per cell with mean and spread over seeds, the floor, and words.

    A cell is *clear of the floor* when each of its networks lies beyond the dense pairs, see `words.beyond`.
    Two recoveries *differ* when their paired test over seeds does, corrected for the number of comparisons: of those
    that were asked beforehand (``claims``), or of all others that are shown.
    """
    first = next(iter(study.audits.values()))
    of_bias = [shown for shown in study.shown if shown.kind == "bias"]
    summary = {
        "study": study.name,
        "dataset": study.networks[0].run["dataset"],
        "classes": first["classes"],
        "examples": first["examples"],
        "floor": {
            shown.measure: study.floor(shown)
            for shown in study.headline
            if shown.compares or shown.kind == "similarity"
        },
        "lines": [_line(study, title) for title in study.cells],
        "comparisons": statistics.compare(
            [row for row in study.rows if row["kind"] == "bias" and row.get("group") is None],
            {shown.measure: shown.comparison for shown in of_bias},
            explored=[shown.measure for shown in of_bias if shown.headline],
            claims=claims,
        ),
    }
    timed = any(shown.kind == "latency" for shown in study.shown)
    summary["notes"] = notes(summary, counted, timed=timed)
    names = {shown.measure: shown.short for shown in of_bias}
    summary["sentences"] = [*claimed(summary["comparisons"], names), *sentences(summary, study.headline)]
    summary["table"] = main_table(summary, study.headline)
    return summary


def _line(study: Study, title: Title) -> dict[str, Any]:
    networks, audit = study.cells[title], study.audits.get(title)
    line: dict[str, Any] = {
        "network": networks[0].run["network"],
        "pruning": title[0],
        "sparsity_asked": title[1],
        "sparsity_reached": mean_and_spread([network.run["sparsity_reached"] for network in networks])[0],
        "recovery": title[2],
        "seeds": len(networks),
    }
    for shown in study.headline:
        name, values = shown.measure, [network.values.get(shown.measure) for network in networks]
        if title == DENSE and shown.kind == "similarity":
            values = []  # of a network with itself
        line[name], spread = mean_and_spread(values)
        if shown.kind in SPREAD:
            line[f"{name}_spread"] = spread
        if shown.compares:
            whole, floor = study.whole(title, shown.kind, name), study.floor(shown)
            known = audit["measures"].get(name, {}).get("floor") if audit else None
            past = sum(beyond(value, floor, shown.better) for value in values) if floor and audit else None
            line[f"{name}_interval"] = None if whole.get("low") is None else [whole["low"], whole["high"]]
            line[f"{name}_corrected"] = study.whole(title, shown.kind, shown.corrected).get("value")
            line[f"{name}_excess"] = known["excess"] if known else None
            line[f"{name}_clear"] = None if past is None else past == len(networks)
            line[f"{name}_above"] = past
    line["classes_used"] = audit["classes_used"] if audit else None
    return line


def main_table(summary: Mapping[str, Any], headline: Sequence[Shown]) -> dict[str, Any]:
    """The result table as text, the floor last; ``page_only`` are the columns that a terminal has no room for."""
    header, page_only, floors = ["pruning", "sparsity", "recovery"], [], {}
    rows = [
        [
            line["pruning"],
            "0" if line["pruning"] == "dense" else number(line["sparsity_reached"], decimals=3),
            line["recovery"],
        ]
        for line in summary["lines"]
    ]
    last = ["floor (dense pairs)", "0", "mean (97.5 %)"]
    for shown in headline:
        floor = floors[shown] = summary["floor"].get(shown.measure)
        columns = {shown.short: lambda line, shown=shown: _value_text(line, shown)}
        if shown.compares:
            columns[f"{shown.short} over floor"] = lambda line, shown=shown: _excess_text(line, shown)
        if shown.compares and shown.corrected:
            page_only.append(len(header) + len(columns))
            columns[f"{shown.short} without noise (95 %)"] = lambda line, shown=shown: _corrected_text(line, shown)
        header += columns
        for cells, line in zip(rows, summary["lines"], strict=True):
            cells += [text_of(line) for text_of in columns.values()]
        last += [_floor_text(floor, shown, brief=True), *[""] * (len(columns) - 1)]
    seeds = summary["lines"][0]["seeds"]
    spread = "mean ± standard deviation over seeds" if seeds > 1 else "one seed"
    title = f"{summary['study']}: {summary['lines'][0]['network']} on {summary['dataset']}, {counted_seeds(seeds)}"
    star = "* every network lies beyond the floor's 97.5 % quantile"
    starred = any(floor for shown, floor in floors.items() if shown.compares)
    return {
        "title": f"{title}, {spread}",
        "caption": "\n".join([*([star] if starred else []), *summary["notes"]]),
        "header": header,
        "rows": [*rows, *([last] if any(floors.values()) else [])],
        "page_only": page_only,
    }


def _value_text(line: Mapping[str, Any], shown: Shown) -> str:
    return plus_minus(line[shown.measure], line.get(f"{shown.measure}_spread"), shown.digits)


def _excess_text(line: Mapping[str, Any], shown: Shown) -> str:
    excess = line[f"{shown.measure}_excess"]
    return "" if excess is None else number(excess) + " *" * bool(line[f"{shown.measure}_clear"])


def _corrected_text(line: Mapping[str, Any], shown: Shown) -> str:
    corrected, ends = line[f"{shown.measure}_corrected"], line[f"{shown.measure}_interval"]
    if corrected is None and not ends:
        return ""
    return number(corrected) + (f" ({span(*ends)})" if ends else "")


def _floor_text(floor: Mapping[str, Any] | None, shown: Shown, *, brief: bool = False) -> str:
    """Mean with the ends of the dense pairs, when brief with the end that counts; or with their spread."""
    if not floor:
        return "" if brief else NOTHING
    if "high" not in floor:
        return plus_minus(floor["mean"], floor["spread"], shown.digits)
    ends = number(floor["high"]) if brief and shown.better == "lower" else span(floor["low"], floor["high"])
    return f"{number(floor['mean'])} ({ends})"


def counted_seeds(seeds: int) -> str:
    """'1 seed', '3 seeds'."""
    return f"{seeds} seed{'s' * (seeds > 1)}"


def full_list(study: Study, title: Title) -> list[dict[str, str]]:
    """Every measure of a cell as text: value, interval, unit, better, floor, and how it stands to the floor."""
    audit, found = study.audits.get(title, {"measures": {}}), []
    layers: dict[tuple, list] = {}
    for key in study.measured:
        if key[:3] == title:
            layers.setdefault(key[3:5], []).append(key[5])
    for shown in study.shown:
        for layer in layers.get((shown.kind, shown.measure), ()):
            rows = study.measured[(*title, shown.kind, shown.measure, layer)]
            seeds = [row for row in rows if row.get("seed") is not None]
            mean, spread = mean_and_spread([row["value"] for row in seeds])
            # Without a row for all networks together, the interval of the only one that was measured.
            whole = study.whole(title, shown.kind, shown.measure, layer) or (seeds[0] if len(seeds) == 1 else {})
            floor = study.floors.get((shown.measure, layer))
            beside = (audit["measures"].get(shown.measure) or {}).get("floor") or {}
            found.append(
                {
                    "title": shown.title + (f", {layer}" if layer else ""),
                    "value": plus_minus(
                        whole.get("value", mean), spread if shown.kind in SPREAD else None, shown.digits
                    ),
                    "interval": span(whole.get("low"), whole.get("high")) or NOTHING,
                    "unit": shown.unit,
                    "better": shown.better,
                    "floor": _floor_text(floor, shown),
                    "excess": number(beside.get("excess")) if floor else NOTHING,
                    "percentile": number(beside.get("percentile")) if floor else NOTHING,
                }
            )
    return found
