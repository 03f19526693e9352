"""The verb ``gc``: finds folders of the store that no configuration names, and deletes them where asked to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.files import remove
from pipeline.stage import Stage, in_order
from pipeline.store import MANIFEST, Store

# Finished work, and what may lie beside it: unfinished work, the note of a failure, what a kill left.
OURS = re.compile(r"(?P<key>[0-9a-f]{20})(\.(work|failed|old|damaged|inputs))?")


@dataclass(frozen=True)
class Unnamed:
    """What lies in the store under a key that no configuration names.

    entries: its folder and what lies beside it. label: of the stage, where its manifest says. size: bytes.
    """

    kind: str
    key: str
    entries: tuple[Path, ...]
    label: str
    size: int


def unnamed(store: Store, targets: Iterable[Stage]) -> list[Unnamed]:
    """Everything in the store that none of the targets needs, the largest first."""
    named = {(stage.kind, stage.key) for stage in in_order(targets)}
    found: dict[tuple[str, str], list[Path]] = {}
    for folder in sorted((store.root / "store").glob("*")):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = OURS.fullmatch(path.name)  # anything else there is somebody's own
            if match and (folder.name, match["key"]) not in named:
                found.setdefault((folder.name, match["key"]), []).append(path)
    rows = [
        Unnamed(kind, key, tuple(entries), _label(entries), sum(_size(path) for path in entries))
        for (kind, key), entries in found.items()
    ]
    return sorted(rows, key=lambda row: -row.size)


def delete(store: Store, row: Unnamed) -> None:
    """Deletes what was found, with ``store.computing`` held; a kill leaves no half of a finished folder."""
    finished, gone = (store.root / "store" / row.kind / name for name in (row.key, f"{row.key}.old"))
    if finished in row.entries:
        remove(gone)
        os.rename(finished, gone)
    for path in {*row.entries, gone}:
        remove(path)


def _label(entries: list[Path]) -> str:
    for entry in entries:
        try:
            return str(json.loads((entry / MANIFEST).read_text(encoding="utf-8"))["label"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return "unfinished"


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_size(below) for below in path.iterdir())
    return path.lstat().st_size
