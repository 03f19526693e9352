"""A study as a person reads it: CSV tables, figures, one HTML page, TensorBoard events, and the closing sentences.

Everything follows from the long table: a measure that is registered anywhere stands in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.report.terminal import terminal_table

if TYPE_CHECKING:
    from pipeline import efficiency
    from pipeline.statistics import Claim
    from pipeline.table import Row

__all__ = ["FILES", "OPTIONAL_FILES", "terminal_table", "write"]

# What `write` writes: always, and (patterns) where there is something to show.
FILES = (
    *("config.yaml", "summary.json", "index.html"),
    *("rows.csv", "runs.csv", "measures.csv", "per_class.csv", "correlation.csv"),
)
OPTIONAL_FILES = ("*.png", "efficiency.csv", "speed_up.csv", "tensorboard/*")


def write(
    folder: Path,
    *,
    study: str,
    rows: list[Row],
    histories: dict[tuple, list[dict[str, float]]],
    audits: list[tuple[tuple[str, float, str], dict]],
    correlation: list[dict],
    curves: efficiency.Places,
    configuration: str,
    counted: dict[str, list[str]],
    folders: dict[tuple, str],
    claims: Sequence[Claim] = (),
) -> None:
    """Writes everything into an empty folder; the same arguments give the same bytes.

    Args:
        rows: of the long table, with the columns of a run filled. Dense networks have the pruning "dense", sparsity 0
            and the recovery "none".
        histories: training by (pruning, sparsity asked, recovery, seed): a record per epoch.
        audits: ((pruning, sparsity asked, recovery), audit as JSON) per cell of the study; at least one.
        correlation: rows of similarity, layer, measure, statistic, value, low, high, p, n, left_out; as numbers or as
            text of a file.
        curves: quality against cost, where a recovery was trained at several budgets.
        configuration: the resolved YAML.
        counted: which weights sparsity is a share of, in words, and the prunings that this holds for.
        folders: of the networks, relative to the results; keys as those of ``histories``.
        claims: comparisons that were asked beforehand; each names a cell of the study and two of its recoveries.
    """
    # Here and not above: who only prints a summary waits for none of these.
    import json

    from pipeline import efficiency
    from pipeline.files import write_atomically
    from pipeline.report.dashboard import write_events
    from pipeline.report.figures import figures
    from pipeline.report.page import study_page
    from pipeline.report.tables import correlation_rows, gather, summarise, write_tables
    from pipeline.table import write_rows

    gathered = gather(study, rows, histories=histories, audits=audits, folders=folders)
    summary: dict[str, Any] = summarise(gathered, counted, claims)
    correlation = correlation_rows(correlation)
    summary["sentences"] += efficiency.sentences(curves)
    write_atomically(folder / "config.yaml", configuration)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    write_tables(folder, gathered, correlation)
    if curves:
        write_rows(folder / "efficiency.csv", efficiency.point_rows(curves))
        write_rows(folder / "speed_up.csv", efficiency.speed_up_rows(curves))
    drawn = figures(folder, gathered, curves)
    page = study_page(gathered, summary, drawn=drawn, correlation=correlation, curves=curves, text=configuration)
    write_atomically(folder / "index.html", page)
    write_events(folder / "tensorboard", gathered)
