"""Tables: the one long table that every measurement is a row of, and the one reader and writer of CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import written_aside
from pipeline.registry import UserError, nearest

Row = dict[str, Any]

# Which network: the columns of a run. A value of several networks together (a mean over seeds) has no seed.
RUN = ("dataset", "network", "seed", "pruning", "sparsity_asked", "sparsity_reached", "recovery")
# What was measured of it. kind: bias (of predictions), class, floor, similarity, size, latency.
VALUE = (
    *("kind", "measure", "class", "group", "layer", "reference_layer", "reference_seed"),
    *("value", "low", "high", "unit", "better"),
)
COLUMNS = RUN + VALUE
WHOLE = ("seed", "reference_seed")
NUMBERS = ("sparsity_asked", "sparsity_reached", "value", "low", "high")


def measured(kind: str, measure: str, value: float | None, **more: Any) -> Row:
    """One row of the long table; ``more`` fills other columns, such as seed, low, high, unit, better.

    A value that does not exist (None, NaN) is None: an empty place in the file.
    """
    unknown = more.keys() - set(COLUMNS)
    if unknown:
        raise TypeError(f"the long table has no column {', '.join(sorted(unknown))}")
    row = {"kind": kind, "measure": measure, "value": value, **more}
    return {key: _known(part) if key in NUMBERS else part for key, part in row.items()}


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def write_rows(path: Path, rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """A CSV with the columns given, or one per key that any row has; what a row lacks is an empty place.

    Floats are written so that they are read back to the last bit.
    """
    columns = columns or list(dict.fromkeys(key for row in rows for key in row)) or ["empty"]
    with written_aside(path) as aside, aside.open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Every row of a CSV as text; '' for an empty place."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def filled_rows(path: Path, header: str, *, known: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Every row of a CSV that somebody else wrote, as text without blanks around it.

    Args:
        header: what the file should start with, in words.
        known: the columns that it may have; any by default.

    Raises:
        UserError: no header, a column twice or unknown, a line with an empty place, or no CSV at all.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path}: no regular file; give a .csv")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            columns = [name.strip() for name in next(reader, [])]
            if not columns:
                raise UserError(f"{path}: empty file; start it with the header {header}")
            twice = next((name for i, name in enumerate(columns) if name in columns[:i]), None)
            if twice is not None:
                raise UserError(f"{path}: column '{twice}' stands there twice; remove one")
            for name in columns if known is not None else ():
                if name not in known:
                    raise UserError(f"{path}: unknown column '{name}'; {nearest(name, known)}")
            rows = []
            for number, row in enumerate(reader, 2):
                if not row:
                    continue
                if len(row) != len(columns) or not all(cell.strip() for cell in row):
                    raise UserError(f"{path}: line {number} has not {len(columns)} filled columns; mend or remove it")
                rows.append({name: cell.strip() for name, cell in zip(columns, row, strict=True)})
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as .csv: {error}") from None


def write_long(path: Path, rows: Sequence[Row]) -> None:
    """Rows of the long table, with all of its columns in order."""
    write_rows(path, rows, COLUMNS)


def read_long(path: Path) -> list[Row]:
    """Rows of the long table: whole numbers, floats and text; None for an empty place.

    Raises:
        UserError: the file has other columns, or text where a number belongs.
    """
    found = []
    for number, row in enumerate(read_rows(path), 2):
        try:
            found.append({key: _parsed(key, row[key]) for key in COLUMNS})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: line {number} is no row of the long table ({error}); make it again") from None
    return found


def _parsed(column: str, text: str) -> Any:
    if text == "":
        return None
    return int(text) if column in WHOLE else float(text) if column in NUMBERS else text


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows whose columns have these values, in order: ``select(rows, kind="floor", seed=None)``."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def grouped(rows: Iterable[Row], *columns: str) -> dict[tuple, list[Row]]:
    """Rows by the values of some columns, in the order in which these first occur."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(column) for column in columns), []).append(row)
    return found
