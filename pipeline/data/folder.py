"""A folder of image files as a dataset, decoded once into a cache that is checked on every load."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.data.datasets import DATASETS, TestShare
from pipeline.data.split import Dataset, Source, Split
from pipeline.files import inside, read_json, remove_debris, sha256_of, write_atomically
from pipeline.groups import Column, Columns, checked
from pipeline.machine import require_room
from pipeline.registry import UserError, options
from pipeline.stage import OUTSIDE_KEY
from pipeline.table import filled_rows

# Raise this when decoding makes other pixels of the same files: caches and results of the former pixels are then not
# taken for the new ones.
DECODING = 2


@DATASETS.register("image_folder")
@options
class ImageFolder(Dataset):
    """A tree with one folder per class, or ``train/`` and ``test/`` with one folder per class each.

    Where there is no ``test/``, a ``val/``, ``valid/`` or ``validation/`` beside ``train/`` is the test part (as in
    ImageNet): the validation split is always drawn from the training images. Two of them at once are refused, and so
    are classes of these names. Other folders beside ``train/`` are not read, nor is anything whose name starts with a
    dot.

    Images are turned as their EXIF orientation says. Grey images of 16 bits are scaled to 8 (value / 257, rounded).

    Decoded once into a memory-mapped uint8 cache that is checked against the files (name, size, time of change) on
    every load, and against the SHA-256 of its own pixels once per process. The cache remembers a hash of the contents,
    and that hash, not the path, names the results.

    Groups stand in a CSV with the header ``file,column,...``, a line for every image, named by its path below the tree
    (``train/cat/1.png``). They name results of predictions and what follows, no network and no cache.
    """

    path: Annotated[str, Field(description="the tree")] = field(default="", metadata=OUTSIDE_KEY)
    size: Annotated[
        int,
        Field(
            description="images are resized to so many pixels a side; 0 keeps them, then all must be of one size",
            ge=0,
            le=16_384,
        ),
    ] = 32
    colour: Annotated[Literal["rgb", "grey"], Field(description="what images are converted to")] = "rgb"
    test_share: TestShare = 0.2
    group_file: Annotated[
        str, Field(description="a CSV with the header file,column,...: the groups of every image, to report by")
    ] = field(default="", metadata=OUTSIDE_KEY, repr=False)
    suffixes: ClassVar[tuple[str, ...]] = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
    test_parts: ClassVar[tuple[str, ...]] = ("test", "val", "valid", "validation")

    def load(self, root: Path) -> Source:
        tree = Path(self.path).expanduser()
        if not self.path or not os.path.isdir(tree):
            raise UserError(f"data.path: '{self.path}' is not a folder; give the tree that holds one folder per class")
        folders = _folders(tree)
        tests = [name for name in self.test_parts if name in folders]
        parts = [tree]
        if "train" in folders and tests:
            if len(tests) > 1:
                raise UserError(
                    f"{tree}: {' and '.join(tests)} lie beside train; keep the one to test on (validation images are "
                    "drawn from train) and move the others away"
                )
            parts = [tree / "train", tree / tests[0]]
        splits, fingerprints, files = [], [], []
        for part in parts:
            split, fingerprint, names = self._part(part, root)
            splits.append(split)
            fingerprints.append(fingerprint)
            files += [os.path.relpath(part / name, tree) for name in names]
        if len(splits) == 2 and splits[0].classes != splits[1].classes:
            odd = sorted(set(splits[0].classes) ^ set(splits[1].classes))
            raise UserError(f"{tree}: train and {tests[0]} hold different classes ({', '.join(odd[:5])})")
        columns = _columns(Path(self.group_file).expanduser(), files, tree) if self.group_file else {}
        first = 0
        for number, split in enumerate(splits):
            rows = np.arange(first, first + len(split))
            splits[number] = replace(split, groups={name: column.take(rows) for name, column in columns.items()})
            first += len(split)
        test = splits[1] if len(splits) == 2 else None
        fingerprint = hashlib.sha256("".join(fingerprints).encode()).hexdigest()[:16]
        return Source(splits[0], test, fingerprint, _contents(columns) if columns else "")

    def identity(self, root: Path) -> str:
        return self.load(root).fingerprint

    def groups_identity(self, root: Path) -> str:
        return self.load(root).groups_fingerprint if self.group_file else ""

    def _part(self, tree: Path, root: Path) -> tuple[Split, str, list[str]]:
        """The images of a tree of classes, what their contents are called, and their paths below the tree."""
        classes = _folders(tree)
        for name in classes:
            if name.lower() in ("train", *self.test_parts):
                raise UserError(
                    f"{tree / name}: would be read as a class named {name}; put classes under both train and one of "
                    f"{', '.join(self.test_parts)}, or give the folder that holds the classes as data.path"
                )
        if len(classes) < 2:
            raise UserError(f"{tree}: {len(classes)} class folders found; two or more are needed, one per class")
        listing, labels = [], []
        for label, name in enumerate(classes):
            found = self._images(tree, name)
            listing += found
            labels += [label] * len(found)
        place = f"{tree.resolve()}|{self.size}|{self.colour}"
        cache = root / "decoded" / hashlib.sha256(place.encode()).hexdigest()[:16]
        stamp = hashlib.sha256(json.dumps([DECODING, listing]).encode()).hexdigest()
        known = _read_cache(cache, stamp)
        if known is None:
            cache.mkdir(parents=True, exist_ok=True)
            # Beside the folder, so that a process which waits for it survives that the folder is deleted.
            with cache.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # gone when the process is, however that ended
                known = _read_cache(cache, stamp)  # another process may have decoded while this one waited
                if known is None:
                    known = self._decode(tree, [entry[0] for entry in listing], cache, stamp)
        file = cache / known["images"]
        try:
            status = os.stat(file)
            if _sha256(file, status.st_mtime_ns, status.st_size) != known["sha256"]:
                raise UserError(f"{file}: the image cache is damaged; delete {cache}, and it is decoded again")
            images = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{cache}: the image cache cannot be read ({error}); delete this folder") from None
        split = Split(images, np.array(labels), np.arange(len(labels)), classes)
        return split, known["fingerprint"], [entry[0] for entry in listing]

    def _images(self, tree: Path, name: str) -> list[tuple[str, int, int]]:
        """The images of a class in order: path below the tree, bytes, time of change."""
        found = []
        try:
            for folder, below, files in os.walk(tree / name, onerror=_raise):
                below[:] = [one for one in below if not one.startswith(".")]
                for one in below:
                    path = os.path.join(folder, one)
                    if os.path.islink(path):  # followed, it could lead in a circle; skipped, its images would be lost
                        raise UserError(f"{path}: a link to a folder inside a class; replace it by the folder itself")
                for file in files:
                    if file.lower().endswith(self.suffixes) and not file.startswith("."):
                        path = os.path.join(folder, file)
                        status = os.stat(path)
                        found.append((os.path.relpath(path, tree), status.st_size, status.st_mtime_ns))
        except OSError as error:
            raise _unreadable(error) from None
        if not found:
            raise UserError(f"{tree / name}: no image in this class folder; add images or remove the folder")
        return sorted(found)

    def _decode(self, tree: Path, names: list[str], cache: Path, stamp: str) -> dict[str, str]:
        """Writes the cache; the caller holds its lock."""
        channels = 3 if self.colour == "rgb" else 1
        require_room(cache, len(names) * self.size**2 * channels, f"{tree}: {len(names):,} decoded images")
        contents, pixels_digest, shape = hashlib.sha256(b"decoding %d" % DECODING), hashlib.sha256(), None
        # Every decoding writes a file of its own name: a reader of the previous one keeps its memory map.
        with tempfile.NamedTemporaryFile(dir=cache, prefix="images-", suffix=".npy", delete=False) as out:
            target = Path(out.name)
            try:
                for name in names:
                    path = tree / name
                    try:
                        content = path.read_bytes()
                    except OSError as error:
                        raise _unreadable(error) from None
                    contents.update(os.fsencode(name) + b"\0" + hashlib.sha256(content).digest())
                    pixels = _pixels(path, content, size=self.size, colour=self.colour)
                    if shape is None:
                        shape, header = pixels.shape, io.BytesIO()
                        whole = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *shape)}
                        np.lib.format.write_array_header_1_0(header, whole)
                        out.write(header.getvalue())
                        pixels_digest.update(header.getvalue())
                    if pixels.shape != shape:
                        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
                        raise UserError(f"{path}: {size} pixels, others differ; set data.size to resize all")
                    out.write(pixels)
                    pixels_digest.update(pixels)
                out.flush()
                known = {
                    "stamp": stamp,
                    "fingerprint": contents.hexdigest(),
                    "images": target.name,
                    "sha256": pixels_digest.hexdigest(),
                    "path": str(tree),
                }
                write_atomically(cache / "cache.json", json.dumps(known))
            except BaseException:
                target.unlink(missing_ok=True)
                raise
        # Superseded ones, and what a killed decoding left: nobody else decodes while the lock is held.
        remove_debris(cache / "cache.json")
        for other in cache.glob("images-*"):
            if other != target:
                other.unlink(missing_ok=True)
        return known


def _columns(path: Path, files: Sequence[str], tree: Path) -> dict[str, Column]:
    """The columns of a CSV ``file,column,...`` for the files of a tree, in their order.

    Raises:
        UserError: a file without a line, a line without a file, two lines for one file, an empty place.
    """
    rows = filled_rows(path, "file,column")
    if not rows or "file" not in rows[0] or len(rows[0]) < 2:
        raise UserError(f"{path}: no column 'file' with another beside it; the header is file,column,...")
    by_file: dict[str, dict[str, str]] = {}
    for row in rows:
        name = os.path.normpath(row["file"])
        if name in by_file:
            raise UserError(f"{path}: '{name}' stands there twice; remove one of the lines")
        by_file[name] = row
    if unknown := by_file.keys() - set(files):
        many = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"{path}: '{min(unknown)}'{many} is no image of {tree}; name images by their path below it, such as "
            f"'{files[0]}', and remove lines of others"
        )
    if lacking := [name for name in files if name not in by_file]:
        many = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise UserError(f"{path}: no line for '{lacking[0]}'{many}; give every image of {tree} a line")
    found = {name: Column.of(by_file[file][name] for file in files) for name in rows[0] if name != "file"}
    return checked(found, len(files), str(path))


def _contents(columns: Columns) -> str:
    """Names what the columns say of every example."""
    content = [[name, column.names, column.numbers.tolist()] for name, column in columns.items()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _raise(error: OSError) -> None:
    raise error


def _unreadable(error: OSError) -> UserError:
    path = os.fsdecode(error.filename)
    if os.path.islink(path) and not os.path.exists(path):
        return UserError(f"{path}: a link to something that is not there; mend or remove it")
    return UserError(f"{path}: cannot be read ({error.strerror}); make it readable, or move it out of data.path")


def _folders(tree: Path) -> tuple[str, ...]:
    """The names of the folders of a folder, sorted, without those that start with a dot."""
    try:
        with os.scandir(tree) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in visible:
            entry.stat()  # a broken link would pass for a file, and the class would be lost
        return tuple(sorted(entry.name for entry in visible if entry.is_dir()))
    except OSError as error:
        raise _unreadable(error) from None


def _read_cache(cache: Path, stamp: str) -> dict[str, str] | None:
    """What the cache says of itself; None where it is missing, damaged, incomplete, of other files or names others."""
    description = cache / "cache.json"
    try:
        known = read_json(description)
        current = known["stamp"] == stamp and all(isinstance(known[name], str) for name in ("fingerprint", "sha256"))
        images = inside(cache, known["images"], named_by=description)
        # A link is none of ours, and what it leads to may lie anywhere.
        return known if current and os.path.isfile(images) and not images.is_symlink() else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, UserError):
        return None


@lru_cache(maxsize=64)
def _sha256(path: Path, changed: int, size: int) -> str:
    """Of a file's contents; read once per process as long as its time of change and size stay."""
    return sha256_of(path)


def _pixels(path: Path, content: bytes, *, size: int, colour: str) -> np.ndarray:
    """Decodes an image file: uint8 [height, width, channels], C-contiguous.

    Raises:
        UserError: not an image, damaged, too large for Pillow, or of a mode whose range of values is unknown.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as opened:
            kind, mode = opened.format, opened.mode
            image = ImageOps.exif_transpose(opened)
        # convert() would clip these at 255. Pillow gives the full range of 16 bits to PNG and PGM of mode I.
        if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):
            image = Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).astype(np.uint8))
        elif mode in ("I", "F"):
            raise UserError(f"{path}: mode {mode} ({kind}) has no fixed range of values; save it with 8 or 16 bits")
        image = image.convert("RGB" if colour == "rgb" else "L")
        if size and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(image).reshape(image.height, image.width, -1)
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a readable image (of no known format); remove or replace it") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a readable image ({reason}); remove or replace it") from None
