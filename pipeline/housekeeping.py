"""The verb ``gc``: finds folders of the store that no configuration names, and deletes them where asked to."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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


def delete(store: Store, row: Unnamed) -> bool:
    """Deletes what was found; False where somebody is at work on it. A kill leaves no half of a finished folder."""
    path = store.lock_path(row.kind, row.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        for entry in row.entries:
            if entry.name == row.key and entry.is_dir() and not entry.is_symlink():
                gone = entry.with_name(f"{row.key}.old")
                if gone.exists():
                    shutil.rmtree(gone)
                os.rename(entry, gone)
                entry = gone
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
    return True  # the lock file stays: somebody may be waiting for it


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
