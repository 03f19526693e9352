"""The verb ``gc``: finds folders of the store that no configuration and no report names, and deletes them if asked."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.files import read_json, remove
from pipeline.publication import LISTING
from pipeline.registry import UserError
from pipeline.stage import Stage, in_order
from pipeline.store import MANIFEST, Manifest, Store

# Finished work, and what may lie beside it: unfinished work, the note of a failure, what a kill left.
OURS = re.compile(r"(?P<key>[0-9a-f]{20})(\.(work|failed|old|damaged|inputs))?")


@dataclass(frozen=True)
class Unnamed:
    """What lies in the store under a key that nothing names.

    entries: its folder and what lies beside it. label: of the stage, where its manifest says. size: bytes.
    """

    kind: str
    key: str
    entries: tuple[Path, ...]
    label: str
    size: int


def published(store: Store) -> list[str]:
    """The keys of the reports that people look at.

    Raises:
        UserError: a report does not say its key, so that what it rests on is not known.
    """
    found = []
    for listing in sorted((store.root / "reports").glob(f"*/{LISTING}")):
        try:
            key = read_json(listing)["key"]
            if not re.fullmatch("[0-9a-f]{20}", key):
                raise ValueError(f"no key: {key!r}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{listing}: does not say what its report rests on ({error}); run its study again, or delete its "
                "folder if its results may go"
            ) from None
        found.append(key)
    return found


def unnamed(store: Store, targets: Iterable[Stage], published: Sequence[str] = ()) -> list[Unnamed]:
    """Everything in the store that none of the targets and none of the published reports needs, the largest first.

    Args:
        published: keys of reports; what these and their inputs were made from counts as named too.
    """
    entries = _entries(store, {kind.__name__.lower() for kind in Stage.__subclasses__()})
    finished = {key: path for (_, key), paths in entries.items() for path in paths if path.name == key}
    rested_on: set[str] = set()
    todo = list(published)
    while todo:
        key = todo.pop()
        if key in finished and key not in rested_on:
            with contextlib.suppress(UserError):  # one that cannot be read names nothing, and stays itself
                todo += Manifest.read(finished[key] / MANIFEST).inputs
        rested_on.add(key)
    named = rested_on | {stage.key for stage in in_order(targets)}
    rows = [
        Unnamed(kind, key, tuple(paths), _label(paths), sum(_size(path) for path in paths))
        for (kind, key), paths in entries.items()
        if key not in named
    ]
    return sorted(rows, key=lambda row: -row.size)


def _entries(store: Store, kinds: set[str]) -> dict[tuple[str, str], list[Path]]:
    """What lies in the store under keys; nothing behind a link, and nothing that is not named as we name it."""
    found: dict[tuple[str, str], list[Path]] = {}
    for kind in sorted(kinds):
        folder = store.root / "store" / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ():
            match = OURS.fullmatch(path.name)
            if match and not path.is_symlink():
                found.setdefault((kind, match["key"]), []).append(path)
    return found


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
            return str(read_json(entry / MANIFEST)["label"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return "unfinished"


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_size(below) for below in path.iterdir())
    return path.lstat().st_size
