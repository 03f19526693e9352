"""Noted plans: the same states as the plan itself, and no note is believed that is old, foreign or made up."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import SMOKE, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config as configuration
from pipeline import plan_notes
from pipeline.stage import digest, in_order


@pytest.fixture(autouse=True, scope="module")
def _nothing_foreign():
    """Whatever other tests have registered in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_notes, "FOREIGN", set())
        yield


@pytest.fixture
def config(tmp_path):
    return Path(shutil.copy(SMOKE, tmp_path / "study.yaml"))


def noted(store, config, *overrides):
    """Writes the note of a study; returns its path and the stages."""
    path = plan_notes.place(store.root, config, overrides)
    stages = in_order([plan_of(*overrides, root=store.root / "data", config=config).report])
    plan_notes.note(store, path, configuration.load(config, overrides), stages)
    return path, stages


def test_a_note_tells_of_each_stage_what_the_plan_tells(store, config):
    path, stages = noted(store, config, "seeds=1")
    recalled = plan_notes.recall(path, config, ["seeds=1"], store.root / "data")
    assert recalled.study == "smoke" and recalled.report.key == stages[-1].key
    for note, stage in zip(recalled.stages, stages, strict=True):
        assert (note.kind, note.key, note.label()) == (stage.kind, stage.key, stage.label())
        assert {part.key for part in note.inputs()} == {part.key for part in stage.inputs()}
        assert note.difference(stage.options()) is None
        assert note.difference({**stage.options(), "more": 1}) == "made with other options"
        assert store.folder(note) == store.folder(stage)


def test_equal_words_have_one_place_and_others_another(store, config, tmp_path):
    place = plan_notes.place(store.root, config, ["seeds=1"])
    assert place == plan_notes.place(store.root, Path(shutil.copy(config, tmp_path / "copy.yaml")), ("seeds=1",))
    assert place.parent == store.root / "plans"
    others = [plan_notes.place(store.root, config, words) for words in ([], ["seeds=2"], ["seeds=1", "threads=1"])]
    config.write_text(config.read_text() + "\n# a remark\n")
    others.append(plan_notes.place(store.root, config, ["seeds=1"]))
    assert len({place, *others}) == 5


def test_other_code_is_another_place(store, config, monkeypatch):
    before = plan_notes.place(store.root, config, [])
    monkeypatch.setattr(plan_notes, "_code", lambda: "edited")
    assert plan_notes.place(store.root, config, []) != before


@pytest.mark.parametrize("where", ["file", "override"])
def test_an_interpolation_has_no_note(store, config, where):
    """What it stands for may lie in the environment."""
    if where == "file":
        config.write_text(config.read_text().replace("seeds: 2", "seeds: ${oc.env:HOME}"))
    assert plan_notes.place(store.root, config, ["seeds=${resamples}"] if where == "override" else []) is None


def test_foreign_registrations_have_no_note(store, config, monkeypatch):
    monkeypatch.setattr(plan_notes, "FOREIGN", {type("Loss", (), {})})
    assert plan_notes.place(store.root, config, []) is None


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_configuration_that_cannot_be_read_has_none(store, tmp_path, content):
    config = tmp_path / "none.yaml"
    if content:
        config.write_bytes(content)
    assert plan_notes.place(store.root, config, []) is None


def test_changed_data_makes_a_note_worthless(store, tmp_path, config):
    from PIL import Image

    tree = tmp_path / "images"
    for name in ("cat", "dog"):
        (tree / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(tree / name / f"{number}.png")
    data = ["data.name=image_folder", f"data.path={tree}", "data.size=16"]
    path, _ = noted(store, config, *data)
    recall = lambda: plan_notes.recall(path, config, data, store.root / "data")  # noqa: E731
    assert recall() is not None
    Image.new("RGB", (16, 16), (0, 255, 0)).save(tree / "cat" / "0.png")
    assert recall() is None
    shutil.rmtree(tree)
    assert recall() is None


# Notes that somebody wrote


@pytest.fixture(scope="module")
def note(tmp_path_factory):
    from pipeline.store import Store

    store = Store(tmp_path_factory.mktemp("results"))
    path, _ = noted(store, SMOKE)
    return store, path, json.loads(path.read_text())["content"]


def recalled(store, folder, content):
    """A note with these contents and a checksum that is right, as somebody might write it."""
    path = folder / "0123456789abcdef0123.json"
    if isinstance(content, dict) and "note" in content:
        content["note"] = path.stem
    path.write_text(json.dumps({"sha256": digest(content), "content": content}))
    return plan_notes.recall(path, SMOKE, (), store.root / "data")


def test_a_note_with_a_right_checksum_is_read(note, tmp_path):
    store, _, content = note
    assert recalled(store, tmp_path, dict(content)) is not None


HOSTILE = {
    "a kind that is a path": lambda note: note["stages"][0].__setitem__(0, "../../outside"),
    "a key that is a path": lambda note: note["stages"][0].__setitem__(1, "../../../../etc/passwd"),
    "a short key": lambda note: note["stages"][0].__setitem__(1, "abc"),
    "a key with a line break": lambda note: note["stages"][0].__setitem__(1, "0" * 20 + "\n"),
    "an input that comes later": lambda note: note["stages"][0].__setitem__(4, [len(note["stages"]) - 1]),
    "no such input": lambda note: note["stages"][-1].__setitem__(4, [10**6]),
    "inputs that are none": lambda note: note["stages"][-1].__setitem__(4, "all"),
    "no report": lambda note: note["stages"].pop(),
    "no stages": lambda note: note["stages"].clear(),
    "a study that is a path": lambda note: note.__setitem__("study", "../../outside"),
    "a hidden study": lambda note: note.__setitem__("study", ".."),
    "a list": lambda note: note.clear(),
    "other data": lambda note: note.update(identity="x"),
    "no name": lambda note: note.pop("note"),
}


@pytest.mark.parametrize("change", HOSTILE)
def test_a_note_that_was_edited_is_not_believed(note, tmp_path, change):
    store, _, content = note
    edited = json.loads(json.dumps(content))
    HOSTILE[change](edited)
    assert recalled(store, tmp_path, edited) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(["study", "identity", "stages"]), value=values)
@settings(max_examples=60, deadline=None)
def test_whatever_stands_in_a_note_nothing_breaks(note, tmp_path_factory, key, value):
    store, _, content = note
    found = recalled(store, tmp_path_factory.getbasetemp(), {**content, key: value})
    assert found is None or all(len(each.key) == 20 and "/" not in each.kind for each in found.stages)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null", b"3"])
def test_a_damaged_note_is_none(tmp_path, content):
    (tmp_path / "note.json").write_bytes(content)
    assert plan_notes.recall(tmp_path / "note.json", SMOKE, (), tmp_path) is None
    assert plan_notes.recall(tmp_path / "absent.json", SMOKE, (), tmp_path) is None


def test_options_are_compared_by_a_digest_that_ignores_their_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})
