"""Predictions: what a classifier said about a labelled test set, and the one reader and writer of their files."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.files import write_atomically, written_aside
from pipeline.groups import Column, Columns, checked, is_number, ordered
from pipeline.registry import UserError, nearest
from pipeline.table import filled_rows

LARGEST_EXPANSION = 10_000_000  # examples that a confusion matrix may be written out to, some gigabytes of memory
GROUP = "group"  # what a column is called that has no name of its own
COLUMNS, HEADER = ("label", "prediction", GROUP), "label,prediction[,group]"
PREDICTIONS, CLASSES = "predictions.npz", "classes.json"  # the files of a Predict folder
ARRAYS = ("labels", "logits", "predictions", "confusion", "groups", "classes", "ids")
NUMBERS_OF, NAMES_OF = "groups:", "group_names:"  # what the arrays of a column of groups are called, before its name


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one classifier said about a labelled test set; row *i* is the same example in every one of a study.

    Attributes:
        labels: int64 [N], true class of each example, counted from 0.
        predictions: int64 [N], predicted class.
        logits: float [N, C] or None; the measures of confidence need them.
        classes: the C class names in the order of the numbers, or None.
        groups: columns to report by, by name (a sensitive attribute, a site); see `pipeline.groups`.
        source: how messages name it, usually a file.
        paired: False when only a confusion matrix is known, so that row *i* is just some example of its class.

    Raises:
        UserError: empty, of unequal lengths, out of range, not finite, or fewer than two classes.
    """

    labels: np.ndarray
    predictions: np.ndarray
    logits: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    groups: Columns = field(default_factory=dict)
    source: str = "predictions"
    paired: bool = True

    def __post_init__(self) -> None:
        labels = _integers(self.labels, self.source, "labels")
        predictions = _integers(self.predictions, self.source, "predictions")
        if not len(labels):
            raise UserError(f"{self.source}: no examples; give at least one")
        if len(labels) != len(predictions):
            raise UserError(f"{self.source}: {len(labels)} labels but {len(predictions)} predictions; give one of each")
        count = int(max(labels.max(), predictions.max())) + 1
        if self.logits is not None:
            logits = _logits(self.logits, self.source)
            if len(logits) != len(labels):
                raise UserError(
                    f"{self.source}: {len(labels)} labels but {len(logits)} rows of logits; give one of each"
                )
            if count > logits.shape[1]:
                raise UserError(
                    f"{self.source}: label {count - 1} is out of range for {logits.shape[1]} columns of logits"
                )
            object.__setattr__(self, "logits", logits)
        if self.classes is not None:
            classes = tuple(str(name) for name in self.classes)
            wanted = self.logits.shape[1] if self.logits is not None else count
            if count > len(classes) or (self.logits is not None and len(classes) != wanted):
                raise UserError(f"{self.source}: {len(classes)} class names for {wanted} classes; name each class once")
            object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "groups", checked(self.groups, len(labels), self.source))
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "predictions", predictions)

    @classmethod
    def from_logits(
        cls, labels: np.ndarray, logits: np.ndarray, *, classes: Sequence[str] | None = None, source: str = "logits"
    ) -> Predictions:
        """Predicts the class of the largest logit, the first one among equals."""
        logits = _logits(logits, source)
        names = tuple(classes) if classes is not None else None
        return cls(labels, logits.argmax(1), logits=logits, classes=names, source=source)

    @classmethod
    def from_confusion(
        cls, confusion: np.ndarray, *, classes: Sequence[str] | None = None, source: str = "confusion matrix"
    ) -> Predictions:
        """The examples that a confusion matrix [C, C] counts (rows = true class), by class; ``paired`` is False.

        Raises:
            UserError: no counts, or more than ten million examples, each of which takes memory.
        """
        confusion = checked_confusion(confusion, source)
        if confusion.sum() > LARGEST_EXPANSION:
            raise UserError(
                f"{source}: the confusion matrix counts {confusion.sum():,} examples, more than {LARGEST_EXPANSION:,}; "
                "give the counts of a smaller test set"
            )
        labels, predictions = (np.repeat(axis.ravel(), confusion.ravel()) for axis in np.indices(confusion.shape))
        names = tuple(classes) if classes is not None else tuple(str(c) for c in range(len(confusion)))
        return cls(labels, predictions, classes=names, source=source, paired=False)

    @property
    def class_count(self) -> int:
        """The number of classes, as far as this alone tells: names, else columns of logits, else the largest number."""
        if self.classes is not None:
            return len(self.classes)
        if self.logits is not None:
            return self.logits.shape[1]
        return int(max(self.labels.max(), self.predictions.max())) + 1


@dataclass(frozen=True)
class _Words:
    """A CSV as it was read: class and group names that get numbers once all files are known."""

    source: str
    labels: list[str]
    predictions: list[str]
    groups: list[str] | None


def read(paths: Sequence[str | Path]) -> list[Predictions]:
    """Predictions of each path, with class numbers that mean the same in all of them.

    Raises:
        UserError: naming the file and the trouble.
    """
    found = [_read(Path(path)) for path in paths]
    words = [each for each in found if isinstance(each, _Words)]
    named = next((each for each in found if isinstance(each, Predictions) and each.classes is not None), None)
    if words:
        used = sorted({word for each in words for word in [*each.labels, *each.predictions]})
        numbers = all(is_number(word) for word in used)
        if named is not None and not numbers:
            classes = named.classes
        elif numbers:
            classes = None
        else:
            classes = tuple(used)
        group_names = ordered(word for each in words for word in each.groups or [])
        found = [_numbered(each, classes, group_names) if isinstance(each, _Words) else each for each in found]
    return found


def load(folder: Path, source: str) -> Predictions:
    """What ``write`` wrote; without ``classes.json`` the classes have no names.

    Args:
        source: how messages and results name the folder.

    Raises:
        UserError: no predictions there, or damaged ones.
    """
    file = folder / PREDICTIONS
    if not file.exists():
        raise UserError(f"{source}: holds no {PREDICTIONS}; give a folder that the stage Predict wrote")
    found = _from_arrays(_arrays(file, str(Path(source) / PREDICTIONS)), source)
    names = folder / CLASSES
    if not names.exists():
        return found
    try:
        classes = json.loads(names.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{Path(source) / CLASSES}: not readable as JSON: {error}") from None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{Path(source) / CLASSES}: must be a list of class names")
    return replace(found, classes=tuple(classes))


def write(
    folder: Path,
    logits: np.ndarray,
    labels: np.ndarray,
    ids: np.ndarray,
    classes: Sequence[str],
    groups: Columns | None = None,
) -> None:
    """Writes ``predictions.npz`` and ``classes.json`` into a folder, for ``load`` and the verb ``audit``.

    Args:
        logits: float [N, C].
        labels: integers [N].
        ids: [N], what names each example.
        classes: the C class names in the order of the numbers.
        groups: columns by name; each becomes two arrays, ``groups:kind`` (numbers) and ``group_names:kind``.
    """
    names = json.dumps(list(classes), ensure_ascii=False) + "\n"
    columns = {}
    for name, column in (groups or {}).items():
        columns |= {NUMBERS_OF + name: column.numbers, NAMES_OF + name: np.array(column.names, np.str_)}
    with written_aside(folder / PREDICTIONS) as aside, aside.open("xb") as file:
        np.savez(file, logits=logits, labels=labels, ids=ids, **columns)
    write_atomically(folder / CLASSES, names)


def read_groups(path: str | Path) -> dict[str, Column]:
    """Columns of groups: the array 'groups' of an ``.npz``, or each of a ``.csv`` that is none of predictions."""
    path = Path(path)
    if path.suffix == ".npz":
        arrays = _arrays(path, str(path))
        if "groups" not in arrays:
            raise UserError(f"{path}: no array 'groups'; it holds {', '.join(sorted(arrays)) or 'nothing'}")
        return {GROUP: Column.of(np.asarray(arrays["groups"]).ravel())}
    rows = filled_rows(path, GROUP)
    names = [name for name in (rows[0] if rows else ()) if name not in ("file", *COLUMNS[:2])]
    if not names:
        raise UserError(f"{path}: no column '{GROUP}' with values; start the file with a header that names it")
    return {name: Column.of(row[name] for row in rows) for name in names}


def _read(path: Path) -> Predictions | _Words:
    if path.is_dir():
        return load(path, str(path))
    if not path.exists():
        raise UserError(f"{path}: no such file; give .npz, .csv or a folder with predictions.npz")
    if path.suffix == ".npz":
        return _from_arrays(_arrays(path, str(path)), str(path))
    if path.suffix == ".csv":
        rows = filled_rows(path, HEADER, known=COLUMNS)
        if not rows:
            raise UserError(f"{path}: no examples; give at least one row below the header")
        for column in COLUMNS[:2]:
            if column not in rows[0]:
                raise UserError(f"{path}: no column '{column}'; the header is {HEADER}")
        groups = [row[GROUP] for row in rows] if GROUP in rows[0] else None
        return _Words(str(path), [row["label"] for row in rows], [row["prediction"] for row in rows], groups)
    raise UserError(f"{path}: '{path.suffix}' is not read here; give .npz, .csv or a folder with predictions.npz")


def _arrays(path: Path, source: str) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{source}: not readable as .npz: no archive; save with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except ValueError as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise UserError(f"{source}: holds a pickle, which is never read; save plain arrays of numbers") from None
        raise UserError(f"{source}: not readable as .npz: {str(error).splitlines()[0]}") from None
    except MemoryError:
        raise UserError(f"{source}: an array is larger than the memory of this machine; give fewer examples") from None
    except (OSError, EOFError, KeyError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: not readable as .npz: {first}") from None
    broken = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if broken:  # a member that is no array comes back as its bytes
        raise UserError(f"{source}: not readable as .npz: '{broken[0]}' is no array; save with numpy.savez")
    return arrays


def _from_arrays(arrays: dict[str, np.ndarray], source: str) -> Predictions:
    columns = _columns(arrays, source)
    for name in arrays:
        if name not in ARRAYS and not name.startswith((NUMBERS_OF, NAMES_OF)):
            raise UserError(f"{source}: unknown array '{name}'; {nearest(name, ARRAYS)}")
    classes = tuple(str(name) for name in arrays["classes"].ravel()) if "classes" in arrays else None
    if "confusion" in arrays:
        for name in arrays:
            if name not in ("confusion", "classes"):
                raise UserError(f"{source}: '{name}' beside 'confusion'; give the matrix or the examples, not both")
        return Predictions.from_confusion(arrays["confusion"], classes=classes, source=source)
    if "labels" not in arrays or not ("logits" in arrays or "predictions" in arrays):
        held = ", ".join(sorted(arrays)) or "nothing"
        raise UserError(f"{source}: holds {held}; give 'labels' with 'logits' or 'predictions', or 'confusion'")
    if len(np.atleast_1d(arrays["labels"])) == 0:
        raise UserError(f"{source}: no examples; give at least one")
    if "logits" in arrays:
        read = Predictions.from_logits(arrays["labels"], arrays["logits"], classes=classes, source=source)
        if "predictions" in arrays and not np.array_equal(read.predictions, arrays["predictions"]):
            raise UserError(f"{source}: 'predictions' are not the largest 'logits'; give one of them")
    else:
        read = Predictions(arrays["labels"], arrays["predictions"], classes=classes, source=source)
    return replace(read, groups=columns) if columns else read


def _columns(arrays: dict[str, np.ndarray], source: str) -> dict[str, Column]:
    """The columns of groups that ``write`` wrote; an array 'groups' of whole numbers is one without a name."""
    found = {}
    if "groups" in arrays:
        found[GROUP] = Column.of(_integers(arrays["groups"], source, "groups"))
    for array in arrays:
        kind, mark, name = array.partition(":")
        if not mark or f"{kind}:" not in (NUMBERS_OF, NAMES_OF):
            continue
        other = (NAMES_OF if f"{kind}:" == NUMBERS_OF else NUMBERS_OF) + name
        if other not in arrays:
            raise UserError(f"{source}: '{array}' without '{other}'; give the numbers and the names of the groups")
        numbers = _integers(arrays[NUMBERS_OF + name], source, NUMBERS_OF + name)
        try:
            found[name] = Column(numbers, tuple(map(str, arrays[NAMES_OF + name].ravel())))
        except UserError as error:
            raise UserError(f"{source}: '{NUMBERS_OF}{name}': {error}") from None
    return found


def _numbered(words: _Words, classes: tuple[str, ...] | None, group_names: tuple[str, ...]) -> Predictions:
    place = {name: i for i, name in enumerate(classes)} if classes is not None else None

    def numbers(values: list[str], name: str) -> np.ndarray:
        if place is None:
            long = next((value for value in values if len(value) > 18), None)  # int64 holds any 18 digits
            if long is not None:
                raise UserError(f"{words.source}: {name} {long[:24]} is out of range for a class number")
            return np.array([int(value) for value in values], np.int64)
        for value in values:
            if value not in place:
                raise UserError(
                    f"{words.source}: {name} '{value}' is no class of the other files; {nearest(value, place)}"
                )
        return np.array([place[value] for value in values], np.int64)

    groups = {} if words.groups is None else {GROUP: Column.of(words.groups, group_names)}
    return Predictions(
        numbers(words.labels, "label"),
        numbers(words.predictions, "prediction"),
        classes=classes,
        groups=groups,
        source=words.source,
    )


def refuse_one_class(count: int, source: str) -> None:
    """Raises a UserError where there are fewer than two classes: error rates need one against the others."""
    if count < 2:
        raise UserError(f"{source}: only one class; error rates need at least two")


def _integers(values: np.ndarray, source: str, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1:
        raise UserError(f"{source}: {name} have shape {list(values.shape)}; give one number per example")
    if not len(values):
        return values.astype(np.int64)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{source}: {name} hold NaN or infinity; give class numbers counted from 0")
    whole = values.dtype.kind in "iub" or (values.dtype.kind == "f" and bool((np.mod(values, 1) == 0).all()))
    if not whole:
        raise UserError(f"{source}: {name} are not whole numbers; give class numbers counted from 0")
    if values.min() < 0:
        raise UserError(f"{source}: {name} hold {int(values.min())}, out of range; count classes from 0")
    if values.max() > 10_000_000:
        raise UserError(f"{source}: {name} hold {int(values.max())}, out of range for a class number")
    return values.astype(np.int64)


def _logits(logits: np.ndarray, source: str) -> np.ndarray:
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.dtype.kind not in "fiu":
        raise UserError(f"{source}: logits have shape {list(logits.shape)}; give numbers [examples, classes]")
    bad = ~np.isfinite(logits)
    if bad.any():
        raise UserError(
            f"{source}: logits hold NaN or infinity, first in row {int(bad.any(1).argmax())}; mend the model"
        )
    return logits


def checked_confusion(confusion: np.ndarray, source: str) -> np.ndarray:
    """A confusion matrix as int64 [C, C].

    Raises:
        UserError: not square, negative, not whole numbers, empty, too large to be exact, or fewer than two classes.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise UserError(f"{source}: shape {list(confusion.shape)} is not square; give counts [classes, classes]")
    refuse_one_class(len(confusion), source)
    if confusion.dtype.kind == "f" and not np.isfinite(confusion).all():
        raise UserError(f"{source}: a confusion matrix holds counts; NaN or infinity was found")
    if confusion.dtype.kind not in "iuf" or not (confusion >= 0).all() or (confusion != np.round(confusion)).any():
        raise UserError(f"{source}: a confusion matrix holds counts; negative or broken numbers were found")
    total = confusion.sum(dtype=np.float64)
    if not total:
        raise UserError(f"{source}: no examples; give at least one")
    if total > 2**53:
        raise UserError(f"{source}: the confusion matrix counts {total:.3g} examples; more than 2^53 are not exact")
    return confusion.astype(np.int64)
