"""A study as a person reads it: CSV tables, figures, one HTML page, TensorBoard events, and the closing sentences."""

from __future__ import annotations

import csv
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pipeline import efficiency, statistics
from pipeline.table import measured

Row = dict[str, Any]
COMPARED = {"cev": "ratio", "sde": "ratio", "accuracy": "difference"}  # spread of the bias grows with its size
PLACE = ("pruning", "sparsity_asked", "recovery")


def write(
    folder: Path,
    *,
    study: str,
    runs: list[Row],
    per_class: list[Row],
    audits: list[tuple[tuple[str, float, str], Row]],
    floor_cka: list[float],
    correlation: list[Row],
    curves: efficiency.Places,
    configuration: str,
    counted: dict[str, list[str]],
) -> None:
    """Writes everything into an empty folder.

    Args:
        runs: one row per network, dense networks first; ``history`` holds its training, epoch by epoch.
        per_class: one row per class and cell of the study.
        audits: ((pruning, sparsity, recovery), audit as JSON) per cell.
        floor_cka: similarity of the dense networks among each other.
        correlation: rows of similarity against bias.
        curves: quality against cost, where a recovery was trained at several budgets.
        configuration: the resolved YAML.
        counted: which weights sparsity is a share of, in words, and the prunings that this holds for.
    """
    summary = summarise(study, runs, audits, floor_cka)
    summary["notes"] = notes(summary, counted)
    summary["sentences"] += efficiency.sentences(curves)
    (folder / "config.yaml").write_text(configuration)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    _write_csv(folder / "runs.csv", [{key: value for key, value in run.items() if key != "history"} for run in runs])
    _write_csv(folder / "per_class.csv", per_class)
    _write_csv(folder / "correlation.csv", correlation)
    measures = [
        {"pruning": title[0], "sparsity_asked": title[1], "recovery": title[2], "measure": name, **_flat(value)}
        for title, audit in audits
        for name, value in audit["measures"].items()
    ]
    _write_csv(folder / "measures.csv", measures)
    figures(folder, summary, runs, per_class, curves)
    if curves:
        _write_csv(folder / "efficiency.csv", efficiency.point_rows(curves))
        _write_csv(folder / "speed_up.csv", efficiency.speed_up_rows(curves))
    (folder / "index.html").write_text(page(summary, correlation, curves, configuration), encoding="utf-8")
    tensorboard(folder / "tensorboard", runs)


def _flat(value: Row) -> Row:
    low, high = value["interval"] or (None, None)
    floor = value["floor"] or {}
    return {
        "value": value["value"],
        "low": low,
        "high": high,
        "published": value["published"],
        "floor_mean": floor.get("mean"),
        "floor_high": floor.get("high"),
        "excess": floor.get("excess"),
        "percentile": floor.get("percentile"),
        "unit": value["unit"],
        "better": value["better"],
    }


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


# ---------------------------------------------------------------------------------------------- what it says


def summarise(
    study: str, runs: list[Row], audits: list[tuple[tuple[str, float, str], Row]], floor_cka: list[float]
) -> Row:
    """One line per cell with mean and spread over seeds, the floor, and which differences stand clear.

    A cell is *clear of the floor* when each of its networks lies above the 97.5 percent quantile of the dense pairs.
    Two recoveries *differ* when their paired test over seeds does, corrected for the number of comparisons.
    """
    lines = []
    for title, audit in [(("dense", 0.0, "none"), None), *audits]:
        members = [run for run in runs if (run["pruning"], run["sparsity_asked"], run["recovery"]) == title]
        line: Row = {
            "network": members[0]["model"],
            "pruning": title[0],
            "sparsity_asked": title[1],
            "sparsity_reached": float(np.mean([run["sparsity_reached"] for run in members])),
            "macs_ratio": float(np.mean([run["macs_ratio"] for run in members])),
            "recovery": title[2],
            "seeds": len(members),
        }
        for name in ("latency_b1", "latency_b128"):  # of one seed
            line[name] = next((run[name] for run in members if run[name] is not None), None)
        for name in ("accuracy", "cev", "sde", "cka"):
            line[name], line[f"{name}_spread"] = _mean_and_spread([run[name] for run in members])
        for name in ("cev", "sde"):
            floor = audit["floor"][name] if audit and audit["floor"] and name in audit["floor"] else None
            line[f"{name}_interval"] = audit[f"{name}_interval"] if audit else None
            line[f"{name}_corrected"] = audit["measures"][f"{name}_corrected"]["value"] if audit else None
            line[f"{name}_excess"] = floor["excess"] if floor else None
            values = [run[name] for run in members]
            clear = floor is not None and all(value is not None and value > floor["high"] for value in values)
            line[f"{name}_clear"] = clear if floor else None
            line[f"{name}_above"] = (
                sum(value is not None and value > floor["high"] for value in values) if floor else None
            )
        line["classes_used"] = audit["classes_used"] if audit else None
        lines.append(line)
    lines[0]["cka"], lines[0]["cka_spread"] = None, None  # of a network with itself
    floor = {}
    for name in ("cev", "sde"):
        known = audits[0][1]["floor"] or {}
        floor[name] = {key: known[name][key] for key in ("mean", "low", "high", "pairs")} if name in known else None
    floor["cka"] = None
    if floor_cka:
        mean, spread = _mean_and_spread(floor_cka)
        floor["cka"] = {"mean": mean, "spread": spread, "pairs": len(floor_cka)}
    summary = {
        "study": study,
        "dataset": runs[0]["dataset"],
        "classes": audits[0][1]["classes"],
        "examples": audits[0][1]["examples"],
        "floor": floor,
        "lines": lines,
        "comparisons": statistics.compare(
            [
                measured("bias", name, run[name], **{key: run[key] for key in ("seed", *PLACE)})
                for name in COMPARED
                for run in runs
            ],
            COMPARED,
        ),
    }
    summary["sentences"] = sentences(summary)
    return summary


def _mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where they do not exist (JSON knows no NaN)."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None


def sentences(summary: Row) -> list[str]:
    """What the table says, in words that promise no more than it holds."""
    floor, lines = summary["floor"]["cev"], summary["lines"][1:]
    said = []
    if floor is None:
        said.append(
            "With one seed there is no floor: two equally good dense networks also differ, so no CEV here can be read. "
            "Run at least three seeds."
        )
    else:
        said.append(
            f"Dense networks that differ only in their seed already show a CEV of {number(floor['mean'])} against each "
            f"other ({number(floor['low'])} to {number(floor['high'])}, {floor['pairs']} ordered pairs of "
            f"{summary['lines'][0]['seeds']} networks): this is the floor."
        )
        if summary["lines"][0]["seeds"] < 3:
            said.append("Two seeds make one pair, seen from both sides: no floor to rely on. Run at least three seeds.")
        clear = [line for line in lines if line["cev_clear"]]
        if clear:
            said.append(f"Above the floor in every seed: {'; '.join(name_of(line) for line in clear)}.")
        mixed = [line for line in lines if line["cev_above"] and not line["cev_clear"]]
        if mixed:
            names = (f"{name_of(line)} ({line['cev_above']} of {line['seeds']})" for line in mixed)
            said.append(f"Above the floor in some seeds only: {'; '.join(names)}.")
        inside = [line for line in lines if not line["cev_above"]]
        if inside:
            said.append(f"Not distinguishable from a change of seed: {'; '.join(name_of(line) for line in inside)}.")
    left_out = [line for line in lines if line["classes_used"] < summary["classes"]]
    if left_out:
        fewest = min(line["classes_used"] for line in left_out)
        said.append(
            f"CEV and SDE leave out classes in which a dense network makes no errors of one kind: down to {fewest} of "
            f"{summary['classes']} classes are used in every seed (classes_used in runs.csv and summary.json)."
        )
    return said + compared(summary["comparisons"])


def compared(comparisons: list[Row]) -> list[str]:
    """Which recoveries differ, in the order of the measures, and how many would seem to by chance."""
    said = []
    for measure in COMPARED:
        tested = [one for one in comparisons if one["measure"] == measure and one["p"] is not None]
        if not tested:
            continue
        title = measure if measure == "accuracy" else measure.upper()
        certain = [one for one in tested if one["p_corrected"] < 0.05]
        for one in certain:
            value, low, high = (number(one[key]) for key in ("value", "low", "high"))
            how = (
                f"{value} times that of '{one['second']}'"
                if one["kind"] == "ratio"
                else f"that of '{one['second']}' {'plus' if one['value'] > 0 else 'minus'} {value.lstrip('-')}"
            )
            chance = "below 0.001" if one["p_corrected"] < 0.001 else f"{one['p_corrected']:.2g}"
            corrected = f", corrected for {len(tested)} comparisons" if len(tested) > 1 else ""
            said.append(
                f"At {place(one)}, the {title} of '{one['first']}' is {how} (95 % interval over {one['seeds']} seeds "
                f"{low} to {high}; p {chance}{corrected})."
            )
        seeming = sum(one["p"] < 0.05 for one in tested) - len(certain)
        if len(tested) == 1 and not certain:
            said.append(f"{title}: the seeds' spread hides any difference between the two recoveries.")
        elif len(certain) < len(tested):
            said.append(
                f"{title}: in {len(tested) - len(certain)} of {len(tested)} comparisons of two recoveries the seeds' "
                f"spread hides any difference; {seeming} of them would pass for one without the correction for their "
                f"number, where chance alone gives about {number(0.05 * len(tested))}."
            )
    return said


def notes(summary: Row, counted: dict[str, list[str]]) -> list[str]:
    """What the columns of the table mean, where that depends on the study."""
    parts = [words + (f" ({', '.join(names)})" if len(counted) > 1 else "") for words, names in counted.items()]
    found = [f"Sparsity: share that is gone of the {'; of the '.join(parts)}."] if parts else []
    if any(line["pruning"] != "dense" for line in summary["lines"]):
        found.append(
            "Latency: of one seed over its dense network at batch 1 and 128, median of alternating runs while no other "
            "stage ran. A mask saves no time and no MACs: its zeros are multiplied like any other weight."
        )
    return found


def place(one: Row) -> str:
    return "sparsity 0" if one["pruning"] == "dense" else f"{one['pruning']} {one['sparsity']:g}"


def name_of(line: Row) -> str:
    origin = "dense" if line["pruning"] == "dense" else f"{line['pruning']} {line['sparsity_asked']:g}"
    return f"{origin} + {line['recovery']}" if line["recovery"] != "none" else f"{origin} without recovery"


def number(value: float | None, digits: int | None = None) -> str:
    """Three significant digits, thousands grouped, powers of ten from a million on; a dash where there is no value."""
    if value is None or not math.isfinite(value):
        return "-"
    if digits is not None:
        return f"{value:.{digits}f}"
    if abs(value) >= 1e6:
        return f"{value:.1e}".replace("e+0", "e")
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plus_minus(line: Row, name: str, digits: int | None = None) -> str:
    spread = line[f"{name}_spread"]
    text = number(line[name], digits)
    return text if spread is None or line[name] is None else f"{text} ± {number(spread, digits)}"


def table_rows(summary: Row, *, intervals: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the result table, the floor last; ``intervals`` adds those of CEV and SDE."""
    floor, rows = summary["floor"], []
    for line in summary["lines"]:
        cells = {
            "pruning": line["pruning"],
            "sparsity": "0" if line["pruning"] == "dense" else f"{line['sparsity_reached']:.3f}",
            "recovery": line["recovery"],
            "accuracy": plus_minus(line, "accuracy", 4),
        }
        over = {
            name: ""
            if line[f"{name}_excess"] is None
            else number(line[f"{name}_excess"]) + " *" * line[f"{name}_clear"]
            for name in ("cev", "sde")
        }
        for name in ("cev", "sde"):
            cells[name.upper()] = plus_minus(line, name)
            if intervals:
                cells[f"{name.upper()} over floor"] = over[name]
                ends = " to ".join(number(end) for end in line[f"{name}_interval"] or ())
                corrected = number(line[f"{name}_corrected"]) + (f" ({ends})" if ends else "")
                cells[f"{name.upper()} without noise (95 %)"] = corrected
        cells["CKA"] = plus_minus(line, "cka", 3)
        cells |= {} if intervals else {"CEV over floor": over["cev"]}
        cells["MACs"] = f"{100 * line['macs_ratio']:.0f} %"
        cells["latency b1"] = number(line["latency_b1"], 2)
        cells["latency b128"] = number(line["latency_b128"], 2)
        rows.append(cells)
    header = list(rows[0])
    if floor["cev"]:
        last = {"pruning": "floor (dense pairs)", "sparsity": "0", "recovery": "mean (97.5 %)"}
        last |= {
            name.upper(): f"{number(floor[name]['mean'])} ({number(floor[name]['high'])})" for name in ("cev", "sde")
        }
        last["CKA"] = plus_minus({"cka": floor["cka"]["mean"], "cka_spread": floor["cka"]["spread"]}, "cka", 3)
        rows.append(last)
    return header, [[cells.get(name, "") for name in header] for cells in rows]


def terminal_table(summary: Row) -> Table:
    header, body = table_rows(summary)
    seeds = summary["lines"][0]["seeds"]
    spread = "mean ± standard deviation over seeds" if seeds > 1 else "one seed"
    table = Table(
        title=f"{summary['study']}: {summary['lines'][0]['network']} on {summary['dataset']}, "
        f"{seeds} seed{'s' * (seeds > 1)}, {spread}",
        caption="\n".join(["* every network lies above the floor's 97.5 % quantile", *summary["notes"]]),
        title_justify="left",
        caption_justify="left",
    )
    for column in header:
        shown = column.replace(" b1", "\nb1").replace("over floor", "over\nfloor")
        side = "left" if column in ("pruning", "recovery") else "right"
        table.add_column(shown, justify=side, no_wrap=True)
    for number_, cells in enumerate(body):
        last = number_ == len(body) - 1
        ends = not last and cells[:2] != body[number_ + 1][:2]
        table.add_row(*cells, end_section=ends)
    return table


# ---------------------------------------------------------------------------------------------- pictures


COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")


def figures(folder: Path, summary: Row, runs: list[Row], per_class: list[Row], curves: efficiency.Places) -> None:
    """bias.png (measures over sparsity, with the floor), classes.png (change of recall), similarity.png (CKA and CEV).

    Where there are curves, efficiency.png (quality over cost).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "figure.dpi": 150,
    }
    with matplotlib.rc_context(style):
        for name, draw in (("bias", _bias_figure), ("similarity", _similarity_figure)):
            draw(pyplot, summary, runs).savefig(folder / f"{name}.png", bbox_inches="tight")
        _class_figure(pyplot, summary, per_class).savefig(folder / "classes.png", bbox_inches="tight")
        if curves:
            efficiency.figure(pyplot, curves, COLOURS).savefig(folder / "efficiency.png", bbox_inches="tight")
        pyplot.close("all")


def _colours(runs: list[Row]) -> dict[str, str]:
    """Of each recovery; grey for none at all."""
    names = [name for name in dict.fromkeys(run["recovery"] for run in runs) if name != "none"]
    return {"none": "#444444"} | {name: COLOURS[position % len(COLOURS)] for position, name in enumerate(names)}


def _bias_figure(pyplot, summary: Row, runs: list[Row]):
    from matplotlib import ticker

    prunings = [name for name in dict.fromkeys(run["pruning"] for run in runs) if name != "dense"] or ["dense"]
    measures = {  # wrong predictions rather than right ones, so that a log scale spreads the good networks
        "cev": ("CEV (%²)", lambda run: run["cev"]),
        "sde": ("SDE (%)", lambda run: run["sde"]),
        "accuracy": ("wrong predictions (%)", lambda run: 100 * (1 - run["accuracy"])),
    }
    figure, axes = pyplot.subplots(
        len(measures), len(prunings), figsize=(4 * len(prunings) + 2.5, 7.5), squeeze=False, sharex="col", sharey="row"
    )
    colours = _colours(runs)
    plain = ticker.FuncFormatter(lambda value, _: number(value))
    few = ticker.FuncFormatter(lambda value, _: number(value) if f"{value:e}"[0] in "25" else "")
    for row, (measure, (title, value_of)) in enumerate(measures.items()):
        for column, pruning in enumerate(prunings):
            panel = axes[row][column]
            if row == 0:
                panel.set_title(pruning)
            if row == len(measures) - 1:
                panel.set_xlabel("sparsity reached")
            if column == 0:
                panel.set_ylabel(title)
            floor = summary["floor"].get(measure)
            if floor:
                panel.axhspan(
                    floor["low"], floor["high"], color="#888888", alpha=0.18, lw=0, label="floor: dense pairs"
                )
                panel.axhline(floor["mean"], color="#888888", lw=1, ls=":")
            for recovery, colour in colours.items():
                points = [
                    (run["sparsity_reached"], value_of(run), run["sparsity_asked"])
                    for run in runs
                    if run["recovery"] == recovery and run["pruning"] in (pruning, "dense") and value_of(run)
                ]
                if not points:
                    continue
                panel.scatter(*zip(*[point[:2] for point in points], strict=True), s=12, color=colour, alpha=0.6, lw=0)
                asked = sorted({point[2] for point in points})
                means = [np.mean([p[:2] for p in points if p[2] == level], axis=0) for level in asked]
                panel.plot(*zip(*means, strict=True), color=colour, lw=1.4, marker="_", ms=9, label=recovery)
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter(plain)
            low, high = panel.get_ylim()
            panel.yaxis.set_minor_formatter(few if high / low < 300 else ticker.NullFormatter())
    handles, labels = axes[0][0].get_legend_handles_labels()
    columns = min(2 + 2 * len(prunings), len(labels))
    figure.legend(handles, labels, loc="upper center", ncols=columns, frameon=False, bbox_to_anchor=(0.5, 0.01))
    figure.suptitle("Induced bias over sparsity: a point per seed, lines join the means")
    figure.tight_layout()
    return figure


def _similarity_figure(pyplot, summary: Row, runs: list[Row]):
    figure, panel = pyplot.subplots(figsize=(6, 4))
    colours, markers = _colours(runs), "osD^vP*X"
    prunings = list(dict.fromkeys(run["pruning"] for run in runs if run["cev"]))
    for run in runs:
        if run["cev"] and run["cka"] is not None:
            marker = markers[prunings.index(run["pruning"]) % len(markers)]
            panel.scatter(run["cka"], run["cev"], color=colours[run["recovery"]], marker=marker, s=26, alpha=0.75, lw=0)
    for name, colour in colours.items():
        panel.scatter([], [], color=colour, label=name)
    for position, name in enumerate(prunings):
        panel.scatter([], [], color="#555555", marker=markers[position % len(markers)], label=name)
    if summary["floor"]["cev"]:
        panel.axhline(summary["floor"]["cev"]["mean"], color="#888888", lw=1, ls=":", label="floor (mean)")
    panel.set_yscale("log")
    panel.set_xlabel("linear CKA to the dense parent, mean of block ends")
    panel.set_ylabel("CEV (%²)")
    panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _class_figure(pyplot, summary: Row, per_class: list[Row]):
    cells: dict[str, dict[str, float]] = {}
    for row in per_class:
        line = {key: row[key] for key in ("pruning", "sparsity_asked", "recovery")}
        cells.setdefault(name_of(line), {})[str(row["class"])] = 100 * (row["fnr_reference"] - row["fnr"])
    names, classes = list(cells), list(next(iter(cells.values())))
    values = np.array([[cells[name].get(label, np.nan) for label in classes] for name in names])
    # Networks that were not trained after pruning are far off and would wash out all others.
    trained = np.array([not name.endswith("without recovery") for name in names])
    limit = float(np.nanpercentile(np.abs(values[trained] if trained.any() else values), 98)) or 1.0
    figure, panel = pyplot.subplots(figsize=(min(16, 3.5 + 0.45 * len(classes)), 1.2 + 0.26 * len(names)))
    image = panel.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    panel.grid(False)
    panel.set_yticks(range(len(names)), names)
    step = max(1, len(classes) // 40)
    panel.set_xticks(
        range(0, len(classes), step), classes[::step], rotation=90 if len(max(classes, key=len)) > 2 else 0
    )
    panel.set_xlabel("class")
    figure.colorbar(image, label="change of recall (percentage points)", extend="both")
    panel.set_title("What happened to each class (mean over seeds)")
    return figure


# ---------------------------------------------------------------------------------------------- page, TensorBoard

PAGE_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --strong: #b33; }
body { font: 15px/1.55 system-ui, sans-serif; max-width: 1240px; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.lead { color: #888; margin-top: .2rem; } .said { border-left: 4px solid #4269d0; padding: .2rem 0 .2rem 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:nth-child(1), td:nth-child(1), th:nth-child(3), td:nth-child(3) { text-align: left; }
tr.floor { background: var(--soft); font-style: italic; } img { max-width: 100%; background: #fff; }
pre { background: var(--soft); padding: .8rem 1rem; overflow-x: auto; font-size: 12.5px; }
"""


def page(summary: Row, correlation: list[Row], curves: efficiency.Places, configuration: str) -> str:
    """One HTML page beside the figures; nothing is fetched from elsewhere."""
    escape = html.escape
    header, body = table_rows(summary, intervals=True)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "".join(
        f"<tr{' class=floor' if cells[0].startswith('floor') else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for cells in body
    )
    noted = "".join(f"<p>{escape(note)}</p>" for note in summary["notes"])
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in summary["sentences"])
    along = [row for row in correlation if row["layer"] in ("mean of blocks", "embedding")]
    along_lines = "".join(
        f"<tr><td>CKA, {escape(row['layer'])}</td><td>{escape(row['measure'].upper())}</td>"
        f"<td>{escape(row['statistic'])}</td><td>{float(row['value']):.2f}</td>"
        f"<td>{float(row['low']):.2f} to {float(row['high']):.2f}</td><td>{row['n']}</td></tr>"
        for row in along
    )
    seeds = summary["lines"][0]["seeds"]
    over_seeds = " and seeds" if seeds > 1 else ""
    budgets = _budgets_section(curves) if curves else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(summary["study"])}</title><style>{PAGE_STYLE}</style></head><body>
<h1>{escape(summary["study"])}</h1>
<p class="lead">{escape(summary["dataset"])}, {summary["classes"]} classes, {summary["examples"]:,} test examples,
{escape(summary["lines"][0]["network"])}, {seeds} seed{"s" * (seeds > 1)}</p>
<div class="said">{said}</div>
<h2>Networks</h2>
<div class="scroll"><table><tr>{head}</tr>{lines}</table></div>
<p>Mean ± standard deviation over seeds. <b>CEV</b>: how unevenly the classes' error rates changed, in percent squared.
<b>SDE</b>: how far false positives and false negatives moved apart, in percent. Both compare a network with its own
dense parent; 0 is no change. <b>Floor</b>: the same measures between dense networks of different seeds. A star marks
a value above the floor's 97.5 % quantile in every seed. <b>Without noise</b>: estimate of what
an endless test set would give, with its bootstrap interval over test examples{over_seeds}. <b>CKA</b>: similarity of
the feature maps to the dense parent's.</p>
{noted}
<h2>Bias over sparsity</h2><img src="bias.png" alt="CEV, SDE and wrong predictions over sparsity">
<h2>Classes</h2><img src="classes.png" alt="change of recall per class">
<h2>Does similarity go along with bias?</h2><img src="similarity.png" alt="CKA against CEV">
<div class="scroll"><table><tr><th>similarity</th><th>measure</th><th>statistic</th><th>value</th><th>95 % interval</th>
<th>networks</th></tr>{along_lines}</table></div>
<p>Over all networks of the study; sparsity drives both, so a high value alone does not show that one causes the
other.</p>
{budgets}
<h2>Files</h2><p>runs.csv (one line per network), measures.csv (every measure with interval and floor), per_class.csv,
correlation.csv, summary.json, config.yaml.</p>
<h2>Configuration</h2><pre>{escape(configuration)}</pre>
</body></html>
"""


def _budgets_section(curves: efficiency.Places) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(name_of(row))}</td><td>{html.escape(row['against'])}</td>"
        f"<td>{efficiency.COSTS[row['cost']]}</td>"
        f"<td>{number(row['accuracy_from'], 4)} to {number(row['accuracy_to'], 4)}</td>"
        f"<td>{number(row['speed_up'])}</td>"
        f"<td>{number(row['lowest'])} to {number(row['highest'])}</td>"
        f"<td>{row['seeds_that_overlap']} of {row['seeds']}</td></tr>"
        for row in efficiency.speed_up_rows(curves)
    )
    return f"""<h2>Does it pay?</h2><img src="efficiency.png" alt="validation accuracy over steps and seconds">
<div class="scroll"><table><tr><th>network</th><th>against</th><th>cost</th><th>validation accuracy</th>
<th>speed-up</th><th>over seeds</th><th>seeds</th></tr>{lines}</table></div>
<p>How many times less a recovery needs for the same validation accuracy: the geometric mean over all accuracies that
both reach, on the means over seeds, and its range over the seeds' own curves. Below 1 it needs more. Curves join the
budgets that nothing cheaper beats, with log cost linear in accuracy between them and nothing beyond them. Seconds are
those of the stages, with whatever else the machine did; where the teacher is the dense parent, pruning has paid for its
training anyway. Every network's budget, cost and accuracy is in efficiency.csv.</p>
"""


def tensorboard(folder: Path, runs: list[Row]) -> None:
    """Events with readable run names: ``magnitude 0.9/kd/seed0``; the curves of training and the final measures."""
    from torch.utils.tensorboard import SummaryWriter

    for run in runs:
        origin = "dense" if run["pruning"] == "dense" else f"{run['pruning']} {run['sparsity_asked']:g}"
        with SummaryWriter(str(folder / origin / run["recovery"] / f"seed{run['seed']}")) as writer:
            for record in run["history"]:
                for name, value in record.items():
                    if name != "epoch":
                        writer.add_scalar(f"training/{name}", value, int(record["epoch"]))
            for name in ("accuracy", "cev", "sde", "cka", "sparsity_reached"):
                if run[name] is not None:
                    writer.add_scalar(f"result/{name}", run[name], 0)
