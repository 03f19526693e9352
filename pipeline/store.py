"""The store keeps what a stage made in a folder that is named by its key.

A folder that exists is complete: work happens in ``<key>.work/``, the manifest is written last, then one rename. What
a killed process leaves is gone on with, or removed, by the next one that makes the stage.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.files import (
    ASIDE,
    DamagedFile,
    describe_os_error,
    flush,
    inside,
    is_plain,
    read_json,
    remove,
    sha256_of,
    write_atomically,
)
from pipeline.registry import UserError
from pipeline.stage import Context, Named, Stage, digest

PACKAGES = ("pruning-bias-pipeline", "torch", "torchvision", "torch-pruning", "numpy", "scipy", "ckatorch")
MANIFEST = "manifest.json"
BEGUN_FROM = ".begun-from.json"  # in unfinished work: the inputs that it was begun from


class StageFailed(UserError):
    """A stage ended without a result; what depends on it cannot run."""


class StageBroken(StageFailed):
    """It ended so by a fault of this program and not by something that the user can mend."""


@dataclass(frozen=True)
class Manifest:
    """What a finished folder says of itself.

    options: of the stage, in full. inputs: key -> `contents` of what it was made from. files: name -> bytes, sha256.
    facts: the rest: seconds, device, versions, and what the stage noted. contents: one hash for all files.
    """

    options: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    contents: str

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises UserError where the file is missing, damaged, or names a file outside of its folder."""
        try:
            content = read_json(path)
            options, inputs, files = (content.pop(name) for name in ("options", "inputs", "files"))
            if not all(isinstance(part, dict) for part in (options, inputs, files)):
                raise ValueError("options, inputs and files are mappings")
            for name, recorded in files.items():
                if not isinstance(recorded["sha256"], str) or not isinstance(recorded["bytes"], int):
                    raise ValueError(f"no size and checksum of {name}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete its folder to compute it again") from None
        return cls(options, inputs, files, content, digest(files))

    def damaged(self, folder: Path) -> Path | None:
        """The first file that is missing or not what was written; None where all are whole."""
        for name, recorded in self.files.items():
            path = inside(folder, name, named_by=folder / MANIFEST)
            if not is_plain(path) or path.stat().st_size != recorded["bytes"] or sha256_of(path) != recorded["sha256"]:
                return path
        return None


def check_folder(folder: Path) -> Manifest:
    """The manifest of a finished folder, after every file has been compared with its checksum.

    Raises:
        UserError: there is none, or a file is missing, damaged or edited.
    """
    manifest = Manifest.read(folder / MANIFEST)
    if damaged := manifest.damaged(folder):
        raise UserError(
            f"{damaged}: does not match its checksum in manifest.json (damaged or edited); delete the folder {folder} "
            "to compute it again"
        )
    return manifest


class Store:
    """The results folder: ``store/<stage>/<key>/`` for finished work, ``<key>.work/`` for unfinished work."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._checked: set[str] = set()
        self._manifests: dict[str, tuple[tuple, Manifest]] = {}

    def folder(self, stage: Named) -> Path:
        return self.root / "store" / stage.kind / stage.key

    def _beside(self, stage: Named, suffix: str) -> Path:
        return self.folder(stage).with_name(stage.key + suffix)

    def state(self, stage: Named) -> str:
        """done, stale (made from inputs that have changed since), running, failed, partial or todo."""
        if self.exists(stage):
            return "stale" if self._changed_inputs(stage) else "done"
        if self._locked(stage):
            return "running"
        if self._beside(stage, ".failed").exists():
            return "failed"
        return "partial" if self._beside(stage, ".work").exists() else "todo"

    def failure(self, stage: Named) -> str:
        path = self._beside(stage, ".failed")
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if path.exists() else ""

    def lock_path(self, kind: str, key: str) -> Path:
        return self.root / "locks" / f"{kind}-{key}"

    def _locked(self, stage: Named) -> bool:
        path = self.lock_path(stage.kind, stage.key)
        if not path.exists():
            return False
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def exists(self, stage: Named) -> bool:
        return self._manifest_status(stage) is not None

    def _manifest_status(self, stage: Named) -> tuple[str, tuple] | None:
        """The path of a manifest, and what changes when another is put in its place; None where there is none."""
        path = f"{self.root}/store/{stage.kind}/{stage.key}/{MANIFEST}"
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return path, (status.st_ino, status.st_mtime_ns, status.st_size)

    def done(self, stage: Named) -> bool:
        """Whether the result exists and was made from the inputs as they are now; inputs that are gone do not matter.

        Raises:
            UserError: a default changed since it was made; both values are named.
        """
        if not self.exists(stage):
            return False
        if changed := stage.difference(self.manifest(stage).options):
            raise UserError(
                f"{self.folder(stage)}: {changed}; set the option to either value in the configuration, or delete this "
                "folder"
            )
        return not self._changed_inputs(stage)

    def _changed_inputs(self, stage: Named) -> bool:
        made_from = self.manifest(stage).inputs
        return any(
            part.key in made_from and self.exists(part) and self.contents(part) != made_from[part.key]
            for part in stage.inputs()
        )

    def contents(self, stage: Named) -> str:
        """One hash for all files of a finished stage."""
        return self.manifest(stage).contents

    def manifest(self, stage: Named) -> Manifest:
        """Read once, and again only where the file has been replaced."""
        found = self._manifest_status(stage)
        if found is None:
            return Manifest.read(self.folder(stage) / MANIFEST)  # says that there is none
        path, status = found
        known = self._manifests.get(stage.key)
        if known is None or known[0] != status:
            known = self._manifests[stage.key] = status, Manifest.read(Path(path))
        return known[1]

    def open(self, stage: Stage) -> Path:
        """The folder of a finished stage, its files checked against their checksums once in each process."""
        folder = self.folder(stage)
        if stage.key not in self._checked:
            check_folder(folder)
            self._checked.add(stage.key)
        return folder

    @contextlib.contextmanager
    def lock(self, path: Path, waiting: Callable[[], None] = lambda: None, *, shared: bool = False) -> Iterator[None]:
        """A kernel file lock: it is gone when its process is, however that ended.

        waiting: called before it waits for somebody else, who may have to be let go first: it may raise.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        with path.open("a") as file:  # "w" would touch it at every look
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, kind)
            yield

    @property
    def computing(self) -> Path:
        """The lock that every run holds, shared, while it computes; what deletes results must have it alone."""
        return self.root / "locks" / "computing"

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While a study is computed and published: nobody deletes results.

        Raises:
            UserError: the results could not be kept, before any time is spent.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self.lock(self.computing, shared=True))
            except OSError as error:
                raise UserError(
                    f"{self.root}: cannot be written to ({error.strerror}); choose another folder with RESULTS=... "
                    "(--results)"
                ) from None
            yield

    def execute(self, stage: Stage, context: Context) -> bool:
        """Makes the stage's result unless it exists. Returns whether it was computed here.

        Raises:
            StageFailed: the stage could not be completed, with the reason in one line.
        """

        def waiting() -> None:
            context.say(f"waiting  {stage.label()}: another process is computing it")

        try:
            if self.done(stage):
                return False
            with self.lock(self.lock_path(stage.kind, stage.key), waiting):
                if self.done(stage):
                    return False
                self._make(stage, context)
                return True
        except UserError as error:
            self._note_failure(stage, str(error))
            raise StageFailed(str(error)) from None
        except OSError as error:
            raise StageFailed(describe_os_error(error, self.root)) from None
        except Exception as error:  # a fault of ours: it must not take the rest of the study down, nor be lost
            reason = f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            self._note_failure(stage, f"{reason}\n\n{traceback.format_exc()}")
            raise StageBroken(f"{reason}; the traceback is in {self._beside(stage, '.failed')}") from error

    def _make(self, stage: Stage, context: Context) -> None:
        """Runs a stage in its work folder and publishes it; the caller holds its lock."""
        work = self._beside(stage, ".work")
        for suffix in (".failed", ".old"):  # of an earlier try, or of one that was killed while it replaced this
            remove(self._beside(stage, suffix))
        _remove_links(work)
        inputs = {part.key: self.contents(part) for part in stage.inputs()}
        if self._finished(stage, work, inputs):
            self._publish(stage, work)  # it was killed between its manifest and its name
            return
        begun_from = work / BEGUN_FROM
        if not _same_json(begun_from, inputs):
            remove(work)  # what was begun from other inputs must not be mixed with these
            work.mkdir(parents=True)
            begun_from.write_text(json.dumps(inputs))
        resumed = any(path.name != BEGUN_FROM for path in work.iterdir())
        started = time.time()
        try:
            facts = stage.run(work, context)
        except DamagedFile as error:
            if not error.path.is_relative_to(work):
                raise
            aside = self._beside(stage, ".damaged")
            context.say(f"{error}; set aside in {aside}, and {stage.label()} is begun anew")
            remove(aside)
            os.rename(work, aside)
            work.mkdir()
            begun_from.write_text(json.dumps(inputs))
            facts, resumed = stage.run(work, context), False
        files = _declared(stage, work)
        manifest = {
            "stage": stage.kind,
            "key": stage.key,
            "label": stage.label(),
            "options": stage.options(),
            "inputs": inputs,
            "files": {
                name: {"bytes": (work / name).stat().st_size, "sha256": sha256_of(work / name)} for name in files
            },
            "seconds": round(time.time() - started, 3),
            "resumed": resumed,  # then the seconds are those of the last part only
            **(facts or {}),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "device": context.device,
            "threads": stage.threads,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "packages": _package_versions(),
        }
        for name in files:
            flush(work / name)
        write_atomically(work / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        self._publish(stage, work)

    def _finished(self, stage: Stage, work: Path, inputs: dict[str, str]) -> bool:
        """Whether unfinished work lacks nothing but its name: a manifest, and every file as it says."""
        if not (work / MANIFEST).exists():
            return False
        with contextlib.suppress(
            UserError
        ):  # one that cannot be read says nothing: the stage goes on from what is there
            manifest = Manifest.read(work / MANIFEST)
            whole = manifest.facts.get("key") == stage.key and manifest.inputs == inputs
            if whole and not stage.difference(manifest.options) and not manifest.damaged(work):
                return True
        (work / MANIFEST).unlink()
        return False

    def _publish(self, stage: Stage, work: Path) -> None:
        """Gives finished work its name. What the manifest does not list goes first: it is no result."""
        listed = {MANIFEST, *Manifest.read(work / MANIFEST).files}
        for path in sorted(work.rglob("*"), reverse=True):  # what is in a folder before the folder
            name = path.relative_to(work).as_posix()
            if path.is_dir() and not path.is_symlink():
                if not any(kept.startswith(f"{name}/") for kept in listed):
                    path.rmdir()
            elif name not in listed:
                path.unlink()
        folder, old = self.folder(stage), self._beside(stage, ".old")
        if folder.exists():  # it was made from other inputs
            os.rename(folder, old)
            remove(old)
        os.rename(work, folder)
        flush(folder.parent)
        remove(self._beside(stage, ".damaged"))
        self._checked.discard(stage.key)

    def _note_failure(self, stage: Stage, reason: str) -> None:
        with contextlib.suppress(OSError):  # the note is a courtesy of `plan`; the failure itself is reported anyway
            path = self._beside(stage, ".failed")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, reason + "\n")


def _declared(stage: Stage, work: Path) -> list[str]:
    """The names of the files that a stage has written of those that it declares.

    Raises:
        LookupError: one that it always writes is missing: a fault of the stage.
    """
    written = (path for path in work.rglob("*") if is_plain(path) and path.suffix != ASIDE)
    found = [path.relative_to(work).as_posix() for path in written]
    missing = [name for name in stage.files if name not in found]
    if missing:
        raise LookupError(f"{stage.label()} did not write {', '.join(missing)}")
    patterns = (*stage.files, *stage.optional_files)
    return sorted(name for name in found if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def _remove_links(folder: Path) -> None:
    """Removes the folder if it is a link, and every link in it: a stage writes no links, and follows none."""
    for path in [folder, *folder.rglob("*")] if not folder.is_symlink() else [folder]:
        if path.is_symlink():
            path.unlink()


def _same_json(path: Path, value: Any) -> bool:
    """Whether a file holds this value; one that is missing or damaged does not."""
    try:
        return read_json(path) == value
    except (OSError, ValueError):
        return False


@cache
def _package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # the pipeline itself, run without installing it
            versions[name] = metadata.version(name)
    return versions
