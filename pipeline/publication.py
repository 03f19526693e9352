"""Copies a report out of the store to where people look, and shows it again."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import inside, is_plain, read_json, remove_debris, sha256_of, write_atomically, written_aside
from pipeline.registry import UserError
from pipeline.stage import Named
from pipeline.store import Manifest, Store

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.requirements import Gate

LISTING = "report.json"
EVENTS = "tensorboard"  # the report's files below this folder go to the dashboard's


@dataclass(frozen=True)
class _Part:
    """A folder that people look into, and the files of a report that belong there: name there -> name in the store."""

    folder: Path
    names: dict[str, str]

    def current(self, manifest: Manifest) -> bool:
        """Whether every file is there and whole, and the listing is of this report."""
        listing = read_listing(self.folder)
        if listing["contents"] != manifest.contents:
            return False
        return all(_same(self.folder / name, manifest.files[origin]) for name, origin in self.names.items())

    def copy(self, source: Path, report: Named, manifest: Manifest, say: Callable[[str], None]) -> None:
        """File by file, each written aside and renamed, the list of them last.

        Whatever else a person keeps there stays; only files of an earlier report are removed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_debris(self.folder / LISTING)
        before = read_listing(self.folder)["files"]
        for name, origin in self.names.items():
            target = inside(self.folder, name, named_by=source)
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_debris(target)
            if not _same(target, manifest.files[origin]):
                with written_aside(target) as aside:
                    shutil.copyfile(source / origin, aside)
            if origin.startswith(f"{EVENTS}/"):  # a dashboard mixes all files of events that lie in one folder
                for other in set(target.parent.glob("events.out.tfevents*")) - {target}:
                    other.unlink()
        for name in sorted(set(before) - self.names.keys()):
            try:
                old = inside(self.folder, name, named_by=self.folder / LISTING)
                old.unlink(missing_ok=True)
            except (UserError, OSError) as error:  # nothing that a report wrote
                say(f"warning: {error}; left alone")
                continue
            for parent in old.parents:
                if parent == self.folder:
                    break
                with contextlib.suppress(OSError):  # not empty: something of the person's
                    parent.rmdir()
        content = {"key": report.key, "contents": manifest.contents, "files": sorted(self.names)}
        write_atomically(self.folder / LISTING, json.dumps(content, indent=1) + "\n")


def report_folder(results: Path, study: str) -> Path:
    return results / "reports" / study


def publish(store: Store, report: Named, study: str, say: Callable[[str], None]) -> Path:
    """Puts a finished report where people look, unless it lies there whole. Returns its folder."""
    published = report_folder(store.root, study)
    manifest = store.manifest(report)
    names = list(manifest.files)
    events = {name.removeprefix(f"{EVENTS}/"): name for name in names if name.startswith(f"{EVENTS}/")}
    parts = [
        _Part(published, {name: name for name in names if name not in events.values()}),
        _Part(store.root / "tensorboard" / study, events),
    ]
    if not all(part.current(manifest) for part in parts):  # a look needs no lock, nor a file system to write to
        with store.lock(store.root / "locks" / f"published-{study}"):
            for part in parts:
                part.copy(store.open(report), report, manifest, say)
    return published


def _same(path: Path, recorded: dict[str, object]) -> bool:
    return is_plain(path) and path.stat().st_size == recorded["bytes"] and sha256_of(path) == recorded["sha256"]


def read_listing(folder: Path) -> dict[str, object]:
    """Key, contents and files of the report that was published last; empty where there is none that can be read."""
    try:
        content = read_json(folder / LISTING)
        names = {name: str(content.get(name, "")) for name in ("key", "contents")}
        return {**names, "files": [str(name) for name in content["files"]]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"key": "", "contents": "", "files": []}


def read_summary(published: Path) -> dict[str, Any]:
    """What summary.json of a published report holds.

    Raises:
        UserError: there is none, or nothing that could be shown.
    """
    from pipeline.report.terminal import terminal_table

    try:
        summary = read_json(published / "summary.json")
        terminal_table(summary)
        summary["sentences"] = [str(sentence) for sentence in summary["sentences"]]
    except FileNotFoundError:
        raise UserError(f"{published}: no report to show (there is none yet); make it with the verb run") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{published}: no report to show (damaged, or of an earlier version: {error}); make it with the verb run"
        ) from None
    return summary


def show(published: Path, console: Console, *, as_json: bool, gate: Gate | None = None) -> None:
    """Prints the table and the sentences of a published report, or its summary as JSON; and what a gate found.

    Raises:
        UserError: as `read_summary`.
    """
    from pipeline.report.terminal import terminal_table

    summary = read_summary(published)
    if as_json:
        print(json.dumps(summary if gate is None else {**summary, "gate": gate.to_json()}, indent=1))
    else:
        if not console.is_terminal:
            console.width = max(console.width, 180)  # a log file has no edge
        console.print(terminal_table(summary))
        for sentence in summary["sentences"]:
            console.print(sentence, highlight=False, markup=False)
    if gate:
        gate.tell(sys.stderr if as_json else console.file)
