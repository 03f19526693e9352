"""A stage is a frozen dataclass that names one call; the store keeps what it made under a hash of that value.

A folder that exists is complete: work happens in ``<key>.work/``, the manifest is written last, then one rename.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from pipeline.registry import UserError

# Metadata of a field that must not name a result: where something lies, what it is called in a table.
OUTSIDE_KEY = {"outside_key": True}

PACKAGES = ("torch", "torchvision", "torch-pruning", "numpy", "scipy", "ckatorch")


class StageFailed(UserError):
    """A stage ended without a result; what depends on it cannot run."""


class StageBroken(StageFailed):
    """It ended so by a fault of this program and not by something that the user can mend."""


@dataclass(frozen=True)
class Stage:
    """One step of a study. Fields that are stages (or tuples of stages) are its inputs, all others its options.

    A subclass defines ``run(folder, context)``, which writes its files into the empty or partly filled folder, and
    raises ``version`` when run() changes its answer for the same fields.
    """

    version: ClassVar[int] = 1
    alone: ClassVar[bool] = False  # run while no other stage of the study does: it measures time

    @cached_property
    def key(self) -> str:
        """sha256 over class, version, options that differ from their default, and the keys of the inputs."""
        text = json.dumps(_describe(self, full=False, nested=False), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    def inputs(self) -> list[Stage]:
        found: list[Stage] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            found += [value] if isinstance(value, Stage) else []
            found += [part for part in value if isinstance(part, Stage)] if isinstance(value, tuple) else []
        return found

    def options(self) -> dict[str, Any]:
        """Every option in full, defaults included (inputs by key)."""
        return _describe(self, full=True, nested=False)

    def label(self) -> str:
        """What a person reads in progress lines and lists."""
        return self.kind

    def run(self, folder: Path, context: Context) -> dict[str, float] | None:
        """Writes the result into an empty folder (or goes on in it), and may return facts for the manifest."""
        raise NotImplementedError(f"{type(self).__name__} defines no run()")


def _describe(value: Any, *, full: bool, nested: bool = True) -> Any:
    if isinstance(value, Stage) and nested:
        return {"stage": value.kind, "key": value.key}
    if dataclasses.is_dataclass(value):
        named = getattr(type(value), "name", None)
        content = {"class": named if isinstance(named, str) else type(value).__name__}
        if getattr(type(value), "version", 1) != 1 or isinstance(value, Stage):
            content["version"] = type(value).version
        for field in dataclasses.fields(value):
            part = getattr(value, field.name)
            if field.metadata == OUTSIDE_KEY:
                continue
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if full or default is dataclasses.MISSING or part != default:
                content[field.name] = _describe(part, full=full)
        return content
    if isinstance(value, tuple | list):
        return [_describe(part, full=full) for part in value]
    if isinstance(value, dict):
        return {str(key): _describe(part, full=full) for key, part in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"an option of type {type(value).__name__} cannot name a stage")


@dataclass
class Context:
    """What a running stage may use besides its own fields; nothing here reaches a key.

    store: where inputs lie. data_root: downloads and caches. device: "cpu" or "cuda".
    report: called as report(step, steps, values) during long work; values are shown, not stored.
    """

    store: Store
    data_root: Path
    device: str = "cpu"
    threads: int = 0
    report: Callable[[int, int, dict[str, float]], None] = lambda step, steps, values: None

    def open(self, stage: Stage) -> Path:
        """The folder of a finished input; its files have been checked against the manifest."""
        return self.store.open(stage)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    """The results folder: ``store/<stage>/<key>/`` for finished work, ``<key>.work/`` for unfinished work."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._checked: dict[str, Path] = {}

    def folder(self, stage: Stage) -> Path:
        return self.root / "store" / stage.kind / stage.key

    def _beside(self, stage: Stage, suffix: str) -> Path:
        return self.folder(stage).with_name(stage.key + suffix)

    def state(self, stage: Stage) -> str:
        """done, stale (made from inputs that have changed since), running, failed, partial or todo."""
        if self.exists(stage):
            return "stale" if self._changed_inputs(stage) else "done"
        if self._locked(stage):
            return "running"
        if self._beside(stage, ".failed").exists():
            return "failed"
        return "partial" if self._beside(stage, ".work").exists() else "todo"

    def failure(self, stage: Stage) -> str:
        path = self._beside(stage, ".failed")
        return path.read_text().partition("\n")[0] if path.exists() else ""

    def _lock_path(self, stage: Stage) -> Path:
        return self.root / "locks" / f"{stage.kind}-{stage.key}"

    def _locked(self, stage: Stage) -> bool:
        path = self._lock_path(stage)
        if not path.exists():
            return False
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def exists(self, stage: Stage) -> bool:
        return (self.folder(stage) / "manifest.json").exists()

    def done(self, stage: Stage) -> bool:
        """Whether the result exists and was made from the inputs as they are now; inputs that are gone do not matter.

        Raises:
            UserError: a default changed since it was made; both values are named.
        """
        if not self.exists(stage):
            return False
        stored, now = self.manifest(stage)["options"], json.loads(json.dumps(stage.options()))
        if changed := _first_difference(stored, now, stage.kind):
            raise UserError(
                f"{self.folder(stage)}: made with {changed[0]}={changed[1]}, the default is now {changed[2]}; set the "
                "option to either value in the configuration, or delete this folder"
            )
        return not self._changed_inputs(stage)

    def _changed_inputs(self, stage: Stage) -> bool:
        made_from = self.manifest(stage)["inputs"]
        if isinstance(made_from, list):  # a manifest of before November 2026 has their keys only
            return False
        return any(
            self.exists(part) and self.contents(part) != made_from[part.key]
            for part in stage.inputs()
            if part.key in made_from
        )

    def contents(self, stage: Stage) -> str:
        """One sha256 for all files of a finished stage."""
        return hashlib.sha256(json.dumps(self.manifest(stage)["files"], sort_keys=True).encode()).hexdigest()

    def manifest(self, stage: Stage) -> dict[str, Any]:
        path = self.folder(stage) / "manifest.json"
        try:
            content = json.loads(path.read_text())
            content["options"], content["files"], content["inputs"]
            return content
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete its folder to compute it again") from None

    def open(self, stage: Stage) -> Path:
        """The folder of a finished stage, its files checked against their checksums once in each process."""
        if stage.key not in self._checked:
            folder = self.folder(stage)
            for name, recorded in self.manifest(stage)["files"].items():
                path = folder / name
                if (
                    not path.exists()
                    or path.stat().st_size != recorded["bytes"]
                    or file_sha256(path) != recorded["sha256"]
                ):
                    raise UserError(
                        f"{path}: does not match its checksum in manifest.json (damaged or edited); delete the folder "
                        f"{folder} to compute it again"
                    )
            self._checked[stage.key] = folder
        return self._checked[stage.key]

    @contextlib.contextmanager
    def lock(self, path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """A kernel file lock: it is gone when its process is, however that ended."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:  # "w" would touch it at every look
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def execute(self, stage: Stage, context: Context, waiting: Callable[[], None] = lambda: None) -> bool:
        """Makes the stage's result unless it exists. Returns whether it was computed here.

        Raises:
            StageFailed: the stage could not be completed, with the reason in one line.
        """
        try:
            if self.done(stage):
                return False
            with self.lock(self._lock_path(stage), waiting):
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
        folder, work = self.folder(stage), self._beside(stage, ".work")
        self._beside(stage, ".failed").unlink(missing_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        inputs = {part.key: self.contents(part) for part in stage.inputs()}
        begun_from = self._beside(stage, ".inputs")
        if not begun_from.exists() or begun_from.read_text() != json.dumps(inputs):
            shutil.rmtree(work)  # what was begun from other inputs must not be mixed with these
            work.mkdir()
        write_atomically(begun_from, json.dumps(inputs))
        resumed = any(work.iterdir())
        started = time.time()
        facts = stage.run(work, context) or {}
        files = sorted(path for path in work.rglob("*") if path.is_file())
        manifest = {
            "stage": stage.kind,
            "key": stage.key,
            "label": stage.label(),
            "options": stage.options(),
            "inputs": inputs,
            "files": {
                str(path.relative_to(work)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
                for path in files
            },
            "seconds": round(time.time() - started, 3),
            "resumed": resumed,  # then the seconds are those of the last part only
            **facts,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "device": context.device,
            "threads": context.threads,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "packages": _package_versions(),
        }
        write_atomically(work / "manifest.json", json.dumps(manifest, indent=1) + "\n")
        for path in files:
            _flush_to_disk(path)
        old = self._beside(stage, ".old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():  # it was made from other inputs
            os.rename(folder, old)
        os.rename(work, folder)
        begun_from.unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        _flush_to_disk(folder.parent)

    def _note_failure(self, stage: Stage, reason: str) -> None:
        with contextlib.suppress(OSError):  # the note is a courtesy of `plan`; the failure itself is reported anyway
            path = self._beside(stage, ".failed")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(reason + "\n")


def describe_os_error(error: OSError, root: Path) -> str:
    """One line for trouble with files, with the remedy."""
    path = error.filename or root
    remedy = {
        errno.ENOSPC: "free some space and run again: finished stages are kept",
        errno.EDQUOT: "free some space and run again: finished stages are kept",
        errno.EACCES: "choose a folder that you may write to with RESULTS=... (--results)",
        errno.EPERM: "choose a folder that you may write to with RESULTS=... (--results)",
        errno.EROFS: "choose a folder that can be written to with RESULTS=... (--results)",
        errno.ENOTDIR: "a file is in the way; choose another folder with RESULTS=... (--results)",
        errno.EEXIST: "a file is in the way; choose another folder with RESULTS=... (--results)",
    }.get(error.errno, "mend this and run again: finished stages are kept")
    return f"{path}: {error.strerror or str(error) or type(error).__name__}; {remedy}"


def write_atomically(path: Path, text: str) -> None:
    """The file is either the old one or the whole new one, whenever the machine stops."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        with aside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_difference(stored: Any, now: Any, path: str) -> tuple[str, Any, Any] | None:
    """(place, stored, now), or None; an option that did not exist when the result was made has its default now."""
    if isinstance(stored, dict) and isinstance(now, dict):
        pairs = [(name, value, now.get(name)) for name, value in stored.items()]
    elif isinstance(stored, list) and isinstance(now, list) and len(stored) == len(now):
        pairs = [(str(place), *both) for place, both in enumerate(zip(stored, now, strict=True))]
    else:
        return None if stored == now else (path, stored, now)
    found = (_first_difference(before, after, f"{path}.{name}") for name, before, after in pairs)
    return next((one for one in found if one), None)


def _package_versions() -> dict[str, str]:
    versions = {"pipeline": metadata.version("pruning-bias-pipeline")} if _installed() else {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _installed() -> bool:
    try:
        metadata.version("pruning-bias-pipeline")
        return True
    except metadata.PackageNotFoundError:
        return False


def walk(targets: list[Stage]) -> list[Stage]:
    """Every stage that the targets need, inputs before users, each once, in a stable order."""
    order: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in order:
            for part in stage.inputs():
                visit(part)
            order[stage.key] = stage

    for target in targets:
        visit(target)
    return list(order.values())
