"""The figures of a report: bias over sparsity, what became of each class, bias over similarity, quality over cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import efficiency
from pipeline.files import written_aside
from pipeline.report.catalogue import Shown
from pipeline.report.tables import Network, Study
from pipeline.report.words import name_of, number
from pipeline.similarities import SUMMARY_LAYER
from pipeline.table import grouped, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
MARKERS = "osD^vP*X"
LONGEST = 40  # characters of a name that people chose
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.dpi": 150,
}


def figures(folder: Path, study: Study, curves: efficiency.Places) -> list[str]:
    """Draws what the study has values for; returns the names of the figures, which are .png in the folder.

    bias: the headline measures over sparsity, with the floor. classes: change of recall. similarity: the first headline
    measure that is compared as a ratio, over each headline similarity. efficiency: where there are curves.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    with matplotlib.rc_context(STYLE):
        for name, figure in (
            ("bias", _bias_figure(pyplot, study)),
            ("classes", _class_figure(pyplot, study)),
            ("similarity", _similarity_figure(pyplot, study)),
            ("efficiency", _efficiency_figure(pyplot, curves) if curves else None),
        ):
            if figure is not None:
                with written_aside(folder / f"{name}.png") as aside:  # without the version of the program that drew it
                    figure.savefig(aside, format="png", bbox_inches="tight", metadata={"Software": None})
                drawn.append(name)
        pyplot.close("all")
    return drawn


def plain(text: object) -> str:
    """A name that people chose, as it is: $ opens no formula, _ in front hides no legend, and it ends somewhere."""
    words = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    words = words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
    return (" " if words.startswith("_") else "") + words.replace("$", r"\$")


def _colours(study: Study) -> dict[str, str]:
    """Of each recovery; grey for none at all."""
    names = [name for name in dict.fromkeys(recovery for *_, recovery in study.cells) if name != "none"]
    return {"none": "#444444"} | {name: COLOURS[position % len(COLOURS)] for position, name in enumerate(names)}


def _drawn(shown: Shown) -> tuple[str, Callable[[Network], float | None]]:
    """Title of an axis and what is drawn on it: wrong predictions rather than right ones spread the good networks."""

    def value(network: Network) -> float | None:
        return network.values.get(shown.measure)

    def complement(network: Network) -> float | None:
        known = value(network)
        return None if known is None else 100 * (1 - known)

    if shown.complement:
        return plain(shown.complement), complement
    return plain(shown.short + (f" ({shown.unit})" if shown.unit else "")), value


def _scale(panel: Axes, values: Sequence[float]) -> None:
    """A log axis where one can be: linear around 0 where values are 0 or negative, linear throughout if all are 0."""
    sizes = [abs(value) for value in values if value]
    if not sizes:
        return
    if min(values) > 0:
        panel.set_yscale("log")
    else:
        panel.set_yscale("symlog", linthresh=max(min(sizes), 1e-6 * max(sizes)))
    _label(panel.yaxis)


def _label(axis: Axis) -> None:
    """Names powers of ten on a log axis and, where it spans few of them, some numbers between."""
    from matplotlib import ticker

    low, high = axis.get_view_interval()
    named = "2357" if low > 0 and high / low < 10 else "25"
    few = ticker.FuncFormatter(lambda value, _: number(value) if f"{value:e}"[0] in named else "")
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_formatter(few if low > 0 and high / low < 300 else ticker.NullFormatter())


def _bias_figure(pyplot, study: Study) -> Figure | None:
    measures = [shown for shown in study.headline if shown.kind == "bias"]
    measures.sort(key=lambda shown: not shown.compares)  # bias first, what the networks have alone below it
    if not measures:
        return None
    prunings = [name for name in dict.fromkeys(pruning for pruning, *_ in study.cells) if name != "dense"] or ["dense"]
    size = 4 * len(prunings) + 2.5, 2.5 * len(measures)
    figure, axes = pyplot.subplots(
        len(measures), len(prunings), figsize=size, squeeze=False, sharex="col", sharey="row"
    )
    colours, legend = _colours(study), {}
    for row, shown in enumerate(measures):
        title, value_of = _drawn(shown)
        floor = study.floor(shown) if shown.compares else None
        everything = [value for network in study.networks if (value := value_of(network)) is not None]
        for column, pruning in enumerate(prunings):
            panel = axes[row][column]
            if row == 0:
                panel.set_title(plain(pruning))
            if row == len(measures) - 1:
                panel.set_xlabel("sparsity reached")
            if column == 0:
                panel.set_ylabel(title)
            if floor and "high" in floor:
                band = panel.axhspan(floor["low"], floor["high"], color="#888888", alpha=0.18, lw=0)
                legend["floor: dense pairs, smallest to largest"] = band
                panel.axhline(floor["mean"], color="#888888", lw=1, ls=":")
            for recovery, colour in colours.items():
                cells = {
                    asked: points
                    for (name, asked, after), networks in study.cells.items()
                    if after == recovery
                    and name in (pruning, "dense")
                    and (
                        points := [
                            (network.run["sparsity_reached"], value)
                            for network in networks
                            if (value := value_of(network)) is not None
                        ]
                    )
                }
                if not cells:
                    continue
                every = [point for points in cells.values() for point in points]
                panel.scatter(*zip(*every, strict=True), s=12, color=colour, alpha=0.6, lw=0)
                means = [np.mean(cells[asked], axis=0) for asked in sorted(cells)]
                (line,) = panel.plot(*zip(*means, strict=True), color=colour, lw=1.4, marker="_", ms=9)
                legend[plain(recovery)] = line
        _scale(axes[row][0], everything)
    columns = max(1, min(2 + 2 * len(prunings), len(legend)))
    figure.legend(
        *(list(part) for part in (legend.values(), legend)),
        loc="upper center",
        ncols=columns,
        frameon=False,
        bbox_to_anchor=(0.5, 0.01),
    )
    figure.suptitle("Induced bias over sparsity: a point per seed, lines join the means")
    figure.tight_layout()
    return figure


def _similarity_figure(pyplot, study: Study) -> Figure | None:
    similarities = [shown for shown in study.headline if shown.kind == "similarity"]
    measure = next((shown for shown in study.headline if shown.compares and shown.comparison == "ratio"), None)
    if not similarities or measure is None:
        return None
    title, value_of = _drawn(measure)
    figure, panels = pyplot.subplots(
        1, len(similarities), figsize=(5 * len(similarities) + 1, 4), squeeze=False, sharey="row"
    )
    colours, prunings = _colours(study), list(dict.fromkeys(pruning for pruning, *_ in study.cells))
    markers = {name: MARKERS[position % len(MARKERS)] for position, name in enumerate(prunings)}
    floor = study.floor(measure)
    for panel, shown in zip(panels[0], similarities, strict=True):
        drawn = []
        for (pruning, _, recovery), networks in study.cells.items():
            for network in networks:
                like, value = network.values.get(shown.measure), value_of(network)
                if like is None or value is None:
                    continue
                drawn.append(value)
                style = {"color": colours[recovery], "marker": markers[pruning]}
                panel.scatter(like, value, s=26, alpha=0.75, lw=0, **style)
        if floor:
            panel.axhline(floor["mean"], color="#888888", lw=1, ls=":", label="floor (mean)")
        _scale(panel, drawn)
        panel.set_xlabel(f"{plain(shown.short)} to the dense parent, {SUMMARY_LAYER}")
    panels[0][0].set_ylabel(title)
    last = panels[0][-1]
    for name, colour in colours.items():
        last.scatter([], [], color=colour, label=plain(name))
    for name, marker in markers.items():
        last.scatter([], [], color="#555555", marker=marker, label=plain(name))
    last.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _class_figure(pyplot, study: Study) -> Figure | None:
    """What each class's recall lost or gained: the share missed before less the share missed after."""
    cells: dict[str, dict[str, float]] = {}
    columns = ("pruning", "sparsity_asked", "recovery", "class")
    for key, rows in grouped(select(study.rows, kind="class", group=None), *columns).items():
        missed = {row["measure"]: row["value"] for row in rows}
        if "fnr" not in missed:
            continue  # of the floor, which knows only what a class carries
        before, after = missed.get("fnr_reference"), missed.get("fnr")
        change = np.nan if before is None or after is None else 100 * (before - after)
        cells.setdefault(name_of(dict(zip(columns, key, strict=True))), {})[str(key[-1])] = change
    if not cells:
        return None
    names, classes = list(cells), list(next(iter(cells.values())))
    values = np.array([[cells[name].get(label, np.nan) for label in classes] for name in names])
    # Networks that were not trained after pruning are far off and would wash out all others.
    trained = np.array([not name.endswith("without recovery") for name in names])
    sizes = np.abs(values[trained] if trained.any() else values)
    sizes = sizes[np.isfinite(sizes)]
    limit = (float(np.percentile(sizes, 98)) if len(sizes) else 0.0) or 1.0
    labels = [plain(label) for label in classes]
    figure, panel = pyplot.subplots(figsize=(min(16, 3.5 + 0.45 * len(classes)), 1.2 + 0.26 * len(names)))
    image = panel.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    panel.grid(False)
    panel.set_yticks(range(len(names)), [plain(name) for name in names])
    step = max(1, len(classes) // 40)
    turned = 90 if max(map(len, labels)) > 2 else 0
    panel.set_xticks(range(0, len(classes), step), labels[::step], rotation=turned)
    panel.set_xlabel("class")
    figure.colorbar(image, label="change of recall (percentage points)", extend="both")
    panel.set_title("What happened to each class (mean over seeds)")
    return figure


def _efficiency_figure(pyplot, places: efficiency.Places) -> Figure:
    """Quality over each cost: a point per network, the Pareto curve of the means."""
    costs = efficiency.COSTS
    size = 4 * len(costs), 2.9 * len(places) + 0.6
    figure, panels = pyplot.subplots(len(places), len(costs), figsize=size, squeeze=False, sharey="row")
    titles = list(dict.fromkeys(curve.title for *_, curves in places for curve in curves))
    for row, (pruning, sparsity, curves) in enumerate(places):
        panels[row][0].set_ylabel(f"{plain(pruning)} {sparsity:g}\nvalidation accuracy")
        for panel, cost in zip(panels[row], costs, strict=True):
            for curve in curves:
                if not np.isfinite(curve.costs[cost]).all():
                    continue
                colour = COLOURS[titles.index(curve.title) % len(COLOURS)]
                panel.scatter(curve.costs[cost], curve.quality, s=9, alpha=0.45, lw=0, color=colour)
                front = efficiency.pareto(curve.costs[cost].mean(0), curve.quality.mean(0))
                panel.plot(*front, color=colour, lw=1.4, marker="o", ms=3, label=plain(curve.title))
            panel.set_xscale("log")
            _label(panel.xaxis)
            if row == len(places) - 1:
                panel.set_xlabel(costs[cost], fontsize=8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    columns = max(1, min(5, len(labels)))
    figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False, bbox_to_anchor=(0.5, -0.04))
    figure.tight_layout()
    return figure
