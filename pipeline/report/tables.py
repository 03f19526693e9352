"""The long table as its readers need it: by cell and network, as files, and as the summary with the main table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import bias, statistics
from pipeline.report.catalogue import Shown, catalogue, headline_of, registered
from pipeline.report.words import (
    MARKS,
    NOTHING,
    carried_text,
    claimed,
    name_of,
    notes,
    number,
    plus_minus,
    sentences,
    settled_by,
    span,
    verdict_text,
    yardstick_text,
)
from pipeline.similarities import SUMMARY_LAYER
from pipeline.table import RUN, Row, grouped, measured, select, write_long, write_rows

Title = tuple[str, float, str]  # pruning, sparsity asked, recovery
DENSE: Title = ("dense", 0.0, "none")
YARDSTICKS = {"over_floor": "over floor", "over_control": "over control"}
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
    floors: by measure and layer, what dense networks show among each other: mean, pairs, and low and high (of all) or,
    where the table has no summary of them, spread.
    yardsticks: of each cell, by "over_floor" and "over_control" and by measure, what `pipeline.bias.Yardstick` holds.
    """

    name: str
    rows: list[Row]
    shown: list[Shown]
    cells: dict[Title, list[Network]]
    measured: dict[tuple, list[Row]]
    audits: dict[Title, dict[str, Any]]
    floors: dict[tuple[str, str | None], dict[str, float | int | None]]
    yardsticks: dict[Title, dict[str, dict[str, dict[str, Any]]]]

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
    cells = {title: list(networks.values()) for title, networks in found.items() if networks}
    study = Study(
        name=name,
        rows=list(rows),
        shown=shown,
        cells=cells,
        measured=grouped(whole, "pruning", "sparsity_asked", "recovery", "kind", "measure", "layer"),
        audits=dict(audits),
        floors=_floors(whole),
        yardsticks={
            title: {
                "over_floor": {
                    name: value["over_floor"] for name, value in audit["measures"].items() if value["over_floor"]
                },
                "over_control": _over_control(title, cells, shown),
            }
            for title, audit in audits
        },
    )
    return replace(study, rows=study.rows + _yardstick_rows(study))


def _over_control(title: Title, cells: Mapping[Title, list[Network]], shown: Sequence[Shown]) -> dict[str, dict]:
    """By measure; empty for the control itself, and where nothing is trained after pruning or no control was made."""
    control = {network.run["seed"]: network for network in cells.get((DENSE[0], DENSE[1], title[2]), ())}
    if title[0] == DENSE[0] or title[2] == DENSE[2] or not control:
        return {}
    found = {}
    for one in shown:
        if one.kind != "bias" or not one.compares or one.measure not in cells[title][0].values:
            continue
        pairs = [(network, control.get(network.run["seed"])) for network in cells[title]]
        found[one.measure] = asdict(
            bias.over_control(
                [network.values.get(one.measure) for network, _ in pairs],
                [other.values.get(one.measure) if other else None for _, other in pairs],
                kind=one.comparison,
                margin=one.margin,
                better=one.better,
                seeds=[network.run["seed"] for network, _ in pairs],
            )
        )
    return found


def _yardstick_rows(study: Study) -> list[Row]:
    """Rows of the long table, kinds ``over_floor`` and ``over_control``: one for each cell and measure."""
    rows = []
    for title, yardsticks in study.yardsticks.items():
        for kind, by_measure in yardsticks.items():
            for name, record in by_measure.items():
                whole = study.whole(title, "bias", name)
                rows.append(
                    {column: whole.get(column) for column in RUN}
                    | measured(
                        *(kind, name, record["value"]),
                        low=record["low"],
                        high=record["high"],
                        unit="ratio" if record["kind"] == "ratio" else whole.get("unit"),
                        better=whole.get("better"),
                    )
                )
    return rows


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
    """One row per cell and bias measure: value, interval, the value of averaged sums (published), and yardsticks."""
    rows = []
    for (pruning, sparsity, recovery), audit in study.audits.items():
        for name, value in audit["measures"].items():
            low, high = value["interval"] or (None, None)
            floor = value["floor"] or {}
            beside = study.yardsticks[pruning, sparsity, recovery]
            rows.append(
                {"pruning": pruning, "sparsity_asked": sparsity, "recovery": recovery, "measure": name}
                | {"value": value["value"], "low": low, "high": high, "published": value["published"]}
                | {"withheld": value["withheld"]}
                | {f"floor_{key}": floor.get(key) for key in ("mean", "low", "high")}
                | {
                    f"{kind}{part and '_'}{part}": beside[kind].get(name, {}).get(part or "value")
                    for kind in YARDSTICKS
                    for part in ("", "low", "high", "verdict", "no_worse", "seeds")
                }
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
            shown.measure: _with_carried(study, shown)
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
    summary["minimum_errors"], summary["scarce"] = first["minimum_errors"], first["scarce"]
    summary["reference_errors"] = [
        {key: row[key] for key in ("class", "support", "missed_reference", "claimed_reference")}
        for row in first["per_class"]
    ]
    timed = any(shown.kind == "latency" for shown in study.shown)
    summary["notes"] = notes(summary, counted, timed=timed)
    names = {shown.measure: shown.short for shown in of_bias}
    summary["sentences"] = [*claimed(summary["comparisons"], names), *sentences(summary, study.headline)]
    summary["table"] = main_table(summary, study.headline)
    summary["verdicts"] = verdict_table(summary, study.headline)
    return summary


def _with_carried(study: Study, shown: Shown) -> dict[str, Any] | None:
    """The floor of a measure and, where it is a sum over classes, what each of them carries, the largest first."""
    floor = study.floor(shown)
    shares = {
        row["class"]: row["value"]
        for row in select(
            study.rows, kind="class", measure=f"{shown.measure}_share", pruning=DENSE[0], recovery=DENSE[2]
        )
    }
    if floor is None or not shares:
        return floor
    return floor | {"carried_by": dict(sorted(shares.items(), key=lambda entry: -entry[1]))}


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
            line[f"{name}_seeds"] = sum(value is not None for value in values)
        if shown.compares:
            whole = study.whole(title, shown.kind, name)
            line[f"{name}_interval"] = None if whole.get("low") is None else [whole["low"], whole["high"]]
            line[f"{name}_corrected"] = study.whole(title, shown.kind, shown.corrected).get("value")
    line["classes_used"] = audit["classes_used"] if audit else None
    line |= study.yardsticks.get(title, dict.fromkeys(YARDSTICKS, {}))
    carried = {name: value["carried_by"] for name, value in audit["measures"].items()} if audit else {}
    line["carried_by"] = {name: shares for name, shares in carried.items() if shares}
    line["scarce"] = audit["scarce"] if audit else {}
    measures = audit["measures"] if audit else {}
    line["withheld"] = {name: value["withheld"] for name, value in measures.items() if value["withheld"]}
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
    last = ["floor (dense pairs)", "0", "mean (largest)"]
    enough = summary["lines"][0]["seeds"] > 2  # two dense networks are one pair, seen from both sides
    for shown in headline:
        floor = floors[shown] = summary["floor"].get(shown.measure)
        columns = {shown.short: lambda line, shown=shown: _value_text(line, shown)}
        if shown.compares:
            columns[f"{shown.short} over floor"] = lambda line, shown=shown: _brief(line, shown, "over_floor")
            page_only.append(len(header) + len(columns))
            columns[f"{shown.short} over control"] = lambda line, shown=shown: _brief(line, shown, "over_control")
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
    said = "over floor: beside other dense networks against the same reference (ratio, or difference of what is none); "
    said += "↑ above, ↓ below, = equivalent, ? cannot tell"
    judged = any(line["over_floor"] for line in summary["lines"])
    return {
        "title": f"{title}, {spread}",
        "caption": "\n".join([*([said] if judged else []), *summary["notes"]]),
        "header": header,
        "rows": [*rows, *([last] if enough and any(floors.values()) else [])],
        "page_only": page_only,
    }


def _value_text(line: Mapping[str, Any], shown: Shown) -> str:
    known, seeds = line.get(f"{shown.measure}_seeds"), line["seeds"]
    some = f" ({known} of {seeds} seeds)" if known and known < seeds else ""
    return plus_minus(line[shown.measure], line.get(f"{shown.measure}_spread"), shown.digits) + some


def _brief(line: Mapping[str, Any], shown: Shown, yardstick: str) -> str:
    record = line[yardstick].get(shown.measure)
    return f"{number(record['value'])} {MARKS[record['verdict']]}" if record and record["verdict"] else ""


def verdict_table(summary: Mapping[str, Any], headline: Sequence[Shown]) -> dict[str, Any]:
    """Every verdict on the headline measures as text: header and rows, one for each cell and measure."""
    header = ["network", "measure"]
    for name in YARDSTICKS.values():
        header += [f"{name} (95 %)", "verdict", "could have shown", "seeds to settle"]
    header.append("carried by")
    rows = []
    for shown in headline:
        for line in summary["lines"]:
            if not shown.compares or not any(line[kind].get(shown.measure) for kind in YARDSTICKS):
                continue
            cells = [name_of(line), shown.short]
            for kind in YARDSTICKS:
                record = line[kind].get(shown.measure) or {}
                unsure = record.get("verdict") == "cannot tell"
                cells += [
                    yardstick_text(record),
                    "; ".join(filter(None, [verdict_text(record), record.get("note")])) or NOTHING,
                    number(record.get("detectable")) if unsure else NOTHING,
                    settled_by(record) if unsure else NOTHING,
                ]
            rows.append([*cells, carried_text(line, shown.measure, always=True)])
    return {"header": header, "rows": rows}


def _corrected_text(line: Mapping[str, Any], shown: Shown) -> str:
    corrected, ends = line[f"{shown.measure}_corrected"], line[f"{shown.measure}_interval"]
    if corrected is None and not ends:
        return "withheld" if shown.measure in line["withheld"] else ""
    return number(corrected) + (f" ({span(*ends)})" if ends else "")


def _floor_text(floor: Mapping[str, Any] | None, shown: Shown, *, brief: bool = False) -> str:
    """Mean with the ends of the dense pairs, when brief with the largest; or with their spread."""
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
    """Every measure of a cell as text: value, interval, unit, better, floor, and how it stands to both yardsticks."""
    found = []
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
            audited = study.audits.get(title, {"measures": {}})["measures"].get(shown.measure, {})
            withheld = "withheld" if audited.get("withheld") else ""
            beside = study.yardsticks.get(title, dict.fromkeys(YARDSTICKS, {})) if shown.kind == "bias" else {}
            found.append(
                {
                    "title": shown.title + (f", {layer}" if layer else ""),
                    "value": plus_minus(
                        whole.get("value", mean), spread if shown.kind in SPREAD else None, shown.digits
                    ),
                    "interval": span(whole.get("low"), whole.get("high")) or withheld or NOTHING,
                    "unit": shown.unit,
                    "better": shown.better,
                    "floor": _floor_text(floor, shown),
                }
                | {
                    kind: " ".join(filter(None, [yardstick_text(record), verdict_text(record)]))
                    for kind in YARDSTICKS
                    for record in (beside.get(kind, {}).get(shown.measure) or {},)
                }
            )
    return found
