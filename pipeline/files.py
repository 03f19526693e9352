"""Files: the one atomic writer, names that stay inside their folder, checksums, and words for trouble with the disk."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.registry import UserError

LARGEST_CONFIGURATION = 256 * 1024  # bytes
ASIDE = ".aside"  # how the name of a file ends that is not yet what it will be called


class DamagedFile(UserError):
    """A file that is not what this program wrote there. Work that was begun is set aside and begun anew."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: damaged ({reason})")
        self.path = path


def read_text(path: Path, most: int) -> str:
    """The text of a file that somebody names; nothing that never ends or never answers is opened.

    Raises:
        UserError: no regular file (a folder, a pipe, a device), more than ``most`` bytes, or no UTF-8.
        OSError: it cannot be read.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: {'a folder' if stat.S_ISDIR(mode) else 'a pipe or device'}, no file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: more than {most // 1024} KiB, which no configuration needs")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no text in UTF-8 ({error.reason} at byte {error.start})") from None


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write to; at the end its file is flushed to disk and takes the name ``path`` in one step.

    The file of that name is either the old one or the whole new one, whenever the machine stops. Where the writing
    fails, nothing is left of it.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}{ASIDE}")
    aside.unlink(missing_ok=True)  # a process of this number that was killed, or a link that somebody planted
    try:
        yield aside
        flush(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a whole file; see `written_aside`. Text is UTF-8."""
    with written_aside(path) as aside, aside.open("xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove_debris(path: Path) -> None:
    """Removes what killed writers of this file left aside; only for somebody who alone writes it."""
    for aside in path.parent.glob(f".{glob.escape(path.name)}.*{ASIDE}"):
        aside.unlink(missing_ok=True)


def is_plain(path: Path) -> bool:
    """Whether it is a file itself, and not a link to one: a link in a results folder may lead anywhere."""
    return path.is_file() and not path.is_symlink()


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError, ValueError: it cannot be read, or is no JSON that a sane writer wrote.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder and all below it; nothing where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Asks the disk to keep what a file, or the list of names of a folder, holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: str, *, named_by: Path) -> Path:
    """The file ``name`` of a folder, where the name was read from disk and is not to be trusted.

    Args:
        named_by: the file that holds the name, for the message.

    Raises:
        UserError: the name leads out of the folder: absolute, through ``..``, or through a link.
    """
    path, parts = folder / name, Path(name).parts
    try:
        encodable = "\0" not in name and bool(os.fsencode(name))
        # The last part may be a link: it is the link that is replaced or removed, not what it leads to.
        within = encodable and bool(parts) and not Path(name).is_absolute() and ".." not in parts
        within = within and path.parent.resolve().is_relative_to(folder.resolve())
    except UnicodeEncodeError:
        within = False
    if not within:
        raise UserError(f"{named_by}: names {name!r}, which lies outside of {folder}; it is damaged or was edited")
    return path


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
