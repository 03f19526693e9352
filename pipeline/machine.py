"""What the machine has, held against what something will need, before it is allocated."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pipeline.registry import UserError


def memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_memory(size: int, what: str) -> None:
    """Raises UserError, which opens with ``what``, if so many bytes are more than the machine has."""
    if size > (there := memory()):
        raise UserError(f"{what} would take {_words(size)} of memory, this machine has {_words(there)}; ask for less")


def require_room(folder: Path, size: int, what: str) -> None:
    """Raises UserError, which opens with ``what``, if so many bytes are more than is free where the folder is or will
    be."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    if size > (free := shutil.disk_usage(there).free):
        raise UserError(f"{what} would take {_words(size)} of disk, {there} has {_words(free)} free; ask for less")


def _words(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
