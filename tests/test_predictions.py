"""Files of predictions: what is written is read, of every kind, and one line for everything that is wrong."""

import io
import json
import zipfile

import numpy as np
import pytest
from conftest import made_up_logits, save, write

from pipeline import predictions
from pipeline.registry import UserError

LABELS = np.random.default_rng(0).integers(0, 3, 300)
NAMES = ("cat", "dog", "Zebra ä")


def logits(seed, wrong=0.3):
    return made_up_logits(LABELS, seed, wrong)


def test_what_is_written_is_read(tmp_path):
    scores, ids = logits(1), np.arange(1000, 1300)
    predictions.write(tmp_path, scores, LABELS, ids, NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.json", "predictions.npz"]
    found = predictions.load(tmp_path, "store/predict/abc")
    assert np.array_equal(found.logits, scores) and found.logits.dtype == np.float32
    assert np.array_equal(found.labels, LABELS) and np.array_equal(found.predictions, scores.argmax(1))
    assert (found.classes, found.source, found.paired) == (NAMES, "store/predict/abc", True)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == ["ids", "labels", "logits"] and np.array_equal(archive["ids"], ids)
    (other,) = predictions.read([tmp_path])
    assert np.array_equal(other.logits, scores) and (other.classes, other.source) == (NAMES, str(tmp_path))


def test_the_bytes_are_those_of_savez(tmp_path):
    scores, ids = logits(1), np.arange(len(LABELS))
    (tmp_path / "plain").mkdir()
    np.savez(tmp_path / "plain" / "predictions.npz", logits=scores, labels=LABELS, ids=ids)
    for _ in range(2):  # the second time over the first
        predictions.write(tmp_path, scores, LABELS, ids, NAMES)
        written = (tmp_path / "predictions.npz").read_bytes()
        assert written == (tmp_path / "plain" / "predictions.npz").read_bytes()
    assert (tmp_path / "classes.json").read_text(encoding="utf-8") == json.dumps(NAMES, ensure_ascii=False) + "\n"


class Breaks:
    """An array that stops half way."""

    def __array__(self, dtype=None, copy=None):
        raise OSError("disk gone")


@pytest.mark.parametrize("broken", ["logits", "classes"])
def test_a_write_that_fails_leaves_the_old_files(broken, tmp_path):
    predictions.write(tmp_path, logits(1), LABELS, np.arange(len(LABELS)), NAMES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    scores, names = (Breaks(), NAMES) if broken == "logits" else (logits(2), (b"no text",))
    with pytest.raises((OSError, TypeError), match="disk gone|bytes"):
        predictions.write(tmp_path, scores, LABELS, np.arange(len(LABELS)), names)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(UserError, match="x: holds no predictions.npz"):
        predictions.load(tmp_path / "elsewhere", "x")


@pytest.mark.parametrize("damage", ["predictions.npz: not readable as .npz", "classes.json: not readable as JSON",
                                    "classes.json: must be a list", "2 class names for 3 classes"])  # fmt: skip
def test_damage_is_told_by_the_name_that_the_caller_gave(damage, tmp_path):
    predictions.write(tmp_path, logits(1), LABELS, np.arange(len(LABELS)), NAMES)
    if "npz" in damage:
        (tmp_path / "predictions.npz").write_bytes((tmp_path / "predictions.npz").read_bytes()[:200])
    else:
        text = {"classes.json: not readable as JSON": "[", "classes.json: must be a list": "{}"}.get(
            damage, '["a", "b"]'
        )
        write(tmp_path, "classes.json", text)
    with pytest.raises(UserError, match=damage) as raised:
        predictions.load(tmp_path, "store/predict/abc")
    assert str(raised.value).startswith("store/predict/abc") and str(tmp_path) not in str(raised.value)


def test_numbers_mean_the_same_in_all_files(tmp_path):
    predictions.write(tmp_path, logits(1), LABELS, np.arange(len(LABELS)), NAMES)
    rows = "label,prediction,group\n" + "".join(f"{NAMES[a]},{NAMES[(a + 1) % 3]},10\n" for a in LABELS[:-1])
    one, two = predictions.read([write(tmp_path, "x.csv", rows + f"{NAMES[LABELS[-1]]},dog,9\n"), tmp_path])
    assert one.classes == two.classes == NAMES and np.array_equal(one.labels, two.labels)
    assert one.groups["group"].names == ("9", "10") and one.groups["group"].numbers.tolist() == [1] * 299 + [0]
    (alone,) = predictions.read([write(tmp_path, "y.csv", "label,prediction\n2,0\n10,2\n")])
    assert alone.classes is None and alone.labels.tolist() == [2, 10] and alone.predictions.tolist() == [0, 2]
    (named,) = predictions.read([write(tmp_path, "z.csv", "label,prediction\nb,a\na,c\n")])
    assert named.classes == ("a", "b", "c") and named.labels.tolist() == [1, 0]
    with pytest.raises(UserError, match="label 'dgo' is no class of the other files; .*did you mean 'dog'"):
        predictions.read([write(tmp_path, "v.csv", "label,prediction\ndgo,cat\n"), tmp_path])


@pytest.mark.parametrize(
    ("words", "names"),
    [(["b", "a", "b"], ("a", "b")), (["10", "9", "10"], ("9", "10")), (["-1", "2", "-1"], ("-1", "2"))],
)
def test_groups_are_numbered_in_order(words, names, tmp_path):
    for path in (
        write(tmp_path, "g.csv", "group\n" + "\n".join(words)),
        save(tmp_path, "g.npz", groups=np.array(words)),
    ):
        (found,) = predictions.read_groups(path).values()
        assert found.names == names and [names[number] for number in found.numbers] == words
    with pytest.raises(UserError, match="no array 'groups'; it holds labels"):
        predictions.read_groups(save(tmp_path, "none.npz", labels=LABELS))
    with pytest.raises(UserError, match="no column 'group'"):
        predictions.read_groups(write(tmp_path, "none.csv", "file\nx\n"))
    several = predictions.read_groups(write(tmp_path, "two.csv", "file,site,age\na,x,1\nb,y,2\n"))
    assert {name: column.names for name, column in several.items()} == {"site": ("x", "y"), "age": ("1", "2")}


def huge(folder):
    """An archive whose header promises more numbers than any memory holds."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (2**56,)})
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("labels.npy", header.getvalue())
        archive.writestr("predictions.npy", header.getvalue())
    return str(folder / "x.npz")


class Spy:
    def __reduce__(self):
        return (print, ("opened",))


BAD = {
    "no such file": lambda d: "missing.npz",
    "'.txt' is not read here": lambda d: write(d, "x.txt", "a"),
    "holds a pickle": lambda d: save(d, "x.npz", labels=np.array([Spy(), Spy()], object), predictions=LABELS),
    "not readable as .npz": lambda d: write(d, "x.npz", "this is no archive"),
    "unknown array 'label'; .*did you mean 'labels'": lambda d: save(d, "x.npz", label=LABELS, predictions=LABELS),
    "give 'labels' with 'logits' or 'predictions'": lambda d: save(d, "x.npz", labels=LABELS),
    "300 labels but 299 predictions": lambda d: save(d, "x.npz", labels=LABELS, predictions=LABELS[:-1]),
    "out of range": lambda d: save(d, "x.npz", labels=LABELS, predictions=LABELS - 1),
    "NaN or infinity": lambda d: save(d, "x.npz", labels=LABELS, logits=np.where(logits(1) > 4, np.nan, logits(1))),
    "no examples": lambda d: save(d, "x.npz", labels=LABELS[:0], predictions=LABELS[:0]),
    "is not square": lambda d: save(d, "x.npz", confusion=np.ones((2, 3), int)),
    "negative or broken": lambda d: save(d, "x.npz", confusion=np.array([[1, -1, 0]] * 3)),
    "empty file": lambda d: write(d, "x.csv", ""),
    "no examples; give at least one row": lambda d: write(d, "x.csv", "label,prediction\n"),
    "unknown column 'predicted'; .*did you mean 'prediction'": lambda d: write(d, "x.csv", "label,predicted\n0,1\n"),
    "no column 'prediction'": lambda d: write(d, "x.csv", "label,group\n0,1\n"),
    "line 3 has not 2 filled columns": lambda d: write(d, "x.csv", "label,prediction\n0,1\n0\n"),
    "column 'label' stands there twice": lambda d: write(d, "x.csv", "label,prediction,label\n0,1,2\n"),
    "is out of range for a class number": lambda d: write(d, "x.csv", "label,prediction\n0,99999999999999999999\n"),
    "labels hold NaN or infinity": lambda d: save(d, "x.npz", labels=LABELS + np.inf, predictions=LABELS),
    "NaN or infinity was found": lambda d: save(d, "x.npz", confusion=np.array([[1, np.nan], [1, 2]])),
    "counts 1,000,000,000,003 examples": lambda d: save(d, "x.npz", confusion=np.array([[10**12, 1], [1, 1]])),
    "larger than the memory": huge,
    **{
        f"'{name}' beside 'confusion'": lambda d, name=name: save(d, "x.npz", confusion=np.eye(3) + 1, **{name: LABELS})
        for name in ("labels", "predictions", "logits", "groups")
    },
    "holds no predictions.npz": lambda d: str(d),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_that_names_the_file(message, tmp_path, capsys):
    path = BAD[message](tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        predictions.read([save(tmp_path, "dense.npz", labels=LABELS, logits=logits(1)), path])
    line = str(raised.value)
    assert "\n" not in line and path in line
    assert "opened" not in capsys.readouterr().out


def test_a_broken_archive_member(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels.npy", b"no header")
    with pytest.raises(UserError, match="not readable as .npz|holds a pickle"):
        predictions.read([path])
