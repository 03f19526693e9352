"""The result table in a terminal: everything is text in the summary already, so nothing heavy is loaded to print it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text


def terminal_table(summary: Mapping[str, Any]) -> Table:
    """The main table of a summary, less the columns that only the page has room for."""
    table = summary["table"]
    kept = [place for place in range(len(table["header"])) if place not in table["page_only"]]
    rows = [[cells[place] for place in kept] for cells in table["rows"]]
    # Text objects: names that people chose are not read as markup.
    printed = Table(
        title=Text(str(table["title"])),
        caption=Text(str(table["caption"])),
        title_justify="left",
        caption_justify="left",
    )
    for place in kept:
        heading = str(table["header"][place])
        two_lines = "\n".join(heading.rsplit(" ", 1)) if len(heading) > 8 else heading
        printed.add_column(Text(two_lines), justify="left" if place in (0, 2) else "right", no_wrap=True)
    for cells, after in zip(rows, [*rows[1:], None], strict=True):
        printed.add_row(*(Text(str(cell)) for cell in cells), end_section=after is not None and cells[:2] != after[:2])
    return printed
