"""The store: keys, atomic folders, locks, checksums, changed defaults."""

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.executors import needed
from pipeline.files import DamagedFile, write_atomically
from pipeline.registry import UserError
from pipeline.stage import OUTSIDE_KEY, Context, Stage, in_order
from pipeline.store import StageBroken, StageFailed, Store


@dataclass(frozen=True)
class Leaf(Stage):
    files = ("value",)
    optional_files = ("runs",)
    number: int
    extra: float = 0.5
    title: str = field(default="", metadata=OUTSIDE_KEY)

    def run(self, folder: Path, context: Context) -> None:
        with (folder / "runs").open("a") as file:
            file.write("x")
        (folder / "value").write_text(str(self.number))


@dataclass(frozen=True)
class Sum(Stage):
    optional_files = ("value", "steps")
    parts: tuple[Leaf, ...]

    def run(self, folder: Path, context: Context) -> None:
        total = sum(int((context.open(part) / "value").read_text()) for part in self.parts)
        (folder / "value").write_text(str(total))


@dataclass(frozen=True)
class Slow(Stage):
    def run(self, folder: Path, context: Context) -> None:
        time.sleep(0.5)
        with (context.store.root / "ran").open("a") as file:
            file.write("x")


@dataclass(frozen=True)
class Refusing(Stage):
    def run(self, folder: Path, context: Context) -> None:
        (folder / "half").write_text("half of the work")
        raise UserError("it diverged; lower the rate")


def context(store):
    return Context(store, store.root)


def test_key_follows_values_not_defaults_or_titles():
    assert Leaf(1).key == Leaf(1, extra=0.5).key == Leaf(1, title="named").key
    assert len({Leaf(1).key, Leaf(2).key, Leaf(1, extra=0.6).key, Sum((Leaf(1),)).key, Sum((Leaf(2),)).key}) == 5
    text = '{"class": "Leaf", "number": 1, "version": 1}'  # results on disk must keep their names when code is tidied
    assert Leaf(1).key == hashlib.sha256(text.encode()).hexdigest()[:20]


def test_raised_version_renames():
    before = Sum((Leaf(1),)).key
    try:
        Leaf.version = 2
        assert Sum((Leaf(1),)).key != before
    finally:
        Leaf.version = 1


def test_execute_once_and_manifest(store):
    stage = Sum((Leaf(1), Leaf(2)))
    for part in in_order([stage]):
        assert store.execute(part, context(store)) is True
        assert store.execute(part, context(store)) is False
    assert (store.open(stage) / "value").read_text() == "3"
    manifest = store.manifest(Leaf(1))
    assert manifest.options["extra"] == 0.5 and manifest.files["value"]["bytes"] == 1
    assert (store.open(Leaf(1)) / "runs").read_text() == "x"
    assert [store.state(part) for part in in_order([stage])] == ["done"] * 3


def test_failure_keeps_partial_work_and_reason(store):
    with pytest.raises(StageFailed, match="lower the rate") as error:
        store.execute(Refusing(), context(store))
    assert not isinstance(error.value, StageBroken)  # the user can mend it
    assert store.state(Refusing()) == "failed" and store.failure(Refusing()) == "it diverged; lower the rate"
    assert not store.folder(Refusing()).exists()


def test_damage_is_noticed(store):
    store.execute(Leaf(1), context(store))
    path = store.folder(Leaf(1)) / "value"
    path.write_text("7")
    with pytest.raises(UserError, match=r"value: does not match its checksum.*delete the folder"):
        Store(store.root).open(Leaf(1))
    with pytest.raises(StageFailed, match="checksum"):
        Store(store.root).execute(Sum((Leaf(1),)), Context(Store(store.root), store.root))
    (store.folder(Leaf(1)) / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json: cannot be read"):
        store.done(Leaf(1))


def test_an_option_that_is_new_does_not_disown_older_results(store):
    store.execute(Leaf(1), context(store))
    path = store.folder(Leaf(1)) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["options"]["extra"]  # as if it had been made before there was such an option
    path.write_text(json.dumps(manifest))
    assert store.done(Leaf(1))


def test_changed_default_is_refused_with_both_values(store):
    store.execute(Leaf(1), context(store))
    path = store.folder(Leaf(1)) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["options"]["extra"] = 0.25  # as if it had been made when this was the default
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"made with leaf.extra=0.25, the default is now 0.5"):
        store.done(Leaf(1))


def make_again(store, stage):
    """What a run does: everything that is needed, in order; the stages that were computed."""
    store = Store(store.root)  # as in another process
    return [part for part in needed([stage], store) if store.execute(part, context(store))]


def test_what_was_made_from_other_inputs_is_made_again(store, monkeypatch):
    leaf, other = Leaf(1), Leaf(2)
    total = Sum((leaf, other))
    assert make_again(store, total) == [leaf, other, total] and make_again(store, total) == []
    shutil.rmtree(store.folder(leaf))
    assert make_again(store, total) == [], "what a result was made from may be removed to save space"
    store.execute(leaf, context(store))
    assert make_again(store, total) == [], "the same bytes again"
    shutil.rmtree(store.folder(leaf))
    with monkeypatch.context() as patch:  # the same key, another content: a default of the code's has changed, say
        patch.setattr(Leaf, "run", lambda self, folder, context: _write(folder / "value", "40"))
        store.execute(leaf, context(store))
    assert store.state(total) == "stale" and not store.done(total)
    assert make_again(store, total) == [total] and make_again(store, total) == []
    assert (Store(store.root).open(total) / "value").read_text() == "42"
    assert sorted(path.name for path in store.folder(total).parent.iterdir()) == [total.key]


def test_work_begun_from_other_inputs_is_begun_anew(store, monkeypatch):
    """A stage that goes on where it was stopped does so only while its inputs are the same."""

    def stop(self, folder, context):
        with (folder / "steps").open("a") as file:
            file.write((context.open(self.parts[0]) / "value").read_text())
        if len((folder / "steps").read_text()) < 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Sum, "run", stop)
    leaf, total = Leaf(1), Sum((Leaf(1),))
    with pytest.raises(KeyboardInterrupt):
        make_again(store, total)
    shutil.rmtree(store.folder(leaf))
    with monkeypatch.context() as patch:
        patch.setattr(Leaf, "run", lambda self, folder, context: _write(folder / "value", "7"))
        make_again(store, leaf)
    with pytest.raises(KeyboardInterrupt):  # and not the second half of what the first leaf began
        make_again(store, total)
    make_again(store, total)
    assert (Store(store.root).open(total) / "steps").read_text() == "77"


def _write(path, text):
    path.write_text(text)


def test_a_changed_default_is_noticed_below_a_finished_result(store):
    total = Sum((Leaf(1),))
    make_again(store, total)
    path = store.folder(Leaf(1)) / "manifest.json"
    path.write_text(path.read_text().replace('"extra": 0.5', '"extra": 0.25'))
    with pytest.raises(UserError, match=r"made with leaf.extra=0.25, the default is now 0.5"):
        make_again(store, total)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": None},
        {"inputs": ["a key"]},  # as before November 2026; keys have changed since, so there is no such result
        {"files": [1]},
        {"files": {"value": {"bytes": "1", "sha256": "x"}}},
        {"options": 3},
    ],
)
def test_a_manifest_of_another_shape_is_named(store, change):
    total = Sum((Leaf(1),))
    make_again(store, total)
    path = store.folder(total) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="manifest.json: cannot be read .*; delete its folder"):
        make_again(store, total)


def _execute_slow(root):
    store = Store(Path(root))
    store.execute(Slow(), Context(store, store.root))


def test_two_processes_compute_a_stage_once(store):
    store.root.mkdir(parents=True)
    spawn = multiprocessing.get_context("fork")
    both = [spawn.Process(target=_execute_slow, args=(str(store.root),)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert (store.root / "ran").read_text() == "x"


def test_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file")
    with pytest.raises(StageFailed, match=r"a file is in the way; choose another folder with RESULTS="):
        store.execute(Leaf(1), context(store))


def test_full_disk_is_one_line(store, monkeypatch):
    def full(self, folder, context):
        raise OSError(28, os.strerror(28), str(folder / "value"))

    monkeypatch.setattr(Leaf, "run", full)
    with pytest.raises(StageFailed, match=r"value: No space left on device; free some space and run again"):
        store.execute(Leaf(1), context(store))


def test_write_aside_then_rename(tmp_path, monkeypatch):
    path = tmp_path / "note"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", lambda *arguments: (_ for _ in ()).throw(OSError("stopped here")))
    with pytest.raises(OSError):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_unexpected_fault_is_one_line_and_keeps_its_traceback(store, monkeypatch):
    monkeypatch.setattr(Leaf, "run", lambda self, folder, context: {}["missing"])
    with pytest.raises(StageBroken, match=r"unexpected KeyError: 'missing'; the traceback is in .*\.failed") as error:
        store.execute(Leaf(1), context(store))
    assert "\n" not in str(error.value)
    assert store.failure(Leaf(1)) == "unexpected KeyError: 'missing'"
    assert "Traceback" in next(store.root.rglob("*.failed")).read_text()


# ---------------------------------------------------------------------------------------------- stages in options


@dataclass(frozen=True)
class Teacher:
    """An option that holds a stage, as a loss might."""

    network: Leaf
    weight: float = 1.0


@dataclass(frozen=True)
class Nested(Stage):
    optional_files = ("value",)
    option: object
    hidden: object = field(default=None, metadata=OUTSIDE_KEY)

    def run(self, folder: Path, context: Context) -> None:
        total = sum(int((context.open(part) / "value").read_text()) for part in self.inputs())
        (folder / "value").write_text(str(total))


@pytest.mark.parametrize(
    "option",
    [
        Leaf(1),
        Teacher(Leaf(1)),
        (Teacher(Leaf(1)), Leaf(2)),
        {"first": [Teacher(Leaf(2), weight=0.5)], "second": {"deep": (Leaf(1),)}},
    ],
)
def test_a_stage_anywhere_in_an_option_is_an_input_as_it_is_in_the_key(store, option):
    stage = Nested(option, hidden=Leaf(9))
    described = json.dumps(stage.options())
    assert {part.key for part in stage.inputs()} == {leaf.key for leaf in (Leaf(1), Leaf(2)) if leaf.key in described}
    assert Leaf(9) not in stage.inputs(), "what names no result is not needed for it"
    made = make_again(store, stage)
    assert made[-1] == stage and set(made[:-1]) == set(stage.inputs()) and make_again(store, stage) == []


options = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda part: st.lists(part, max_size=3).map(tuple) | st.dictionaries(st.text(), part, max_size=3),
    max_leaves=8,
)


def respelled(value):
    """An equal value in other types: 1 for 1.0, 1.0 for 1 and for True."""
    if isinstance(value, tuple):
        return tuple(respelled(part) for part in value)
    if isinstance(value, dict):
        return {name: respelled(part) for name, part in reversed(value.items())}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool | int) and abs(value) < 2**53:
        return float(value)
    return value


@given(options, options)
def test_equal_options_give_equal_keys_and_others_do_not(first, second):
    assert first == respelled(first) and Nested(first).key == Nested(respelled(first)).key
    assert (Nested(first).key == Nested(second).key) == (first == second)


def test_what_names_nothing_is_refused():
    for option in (math.nan, {1: "a"}, {1, 2}, object()):
        with pytest.raises((TypeError, ValueError)):
            assert Nested(option).key


def test_a_chain_longer_than_the_interpreters_stack():
    stage = Leaf(0)
    for _ in range(5000):
        stage = Nested(stage)
    order = in_order([stage])
    assert len(order) == 5001 and order[-1] is stage and order[0] == Leaf(0)


# ---------------------------------------------------------------------------------------------- what is published


@dataclass(frozen=True)
class Litter(Stage):
    """Writes what it declares, and more."""

    files = ("kept", "below/kept")
    optional_files = ("early*.txt",)

    def run(self, folder: Path, context: Context) -> None:
        for name in ("kept", "below/kept", "early3.txt", "checkpoint", "core.123", ".kept.99.aside", "empty/stray"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(name)


def test_only_what_is_declared_is_published(store):
    store.execute(Litter(), context(store))
    folder = store.folder(Litter())
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert names == ["below", "below/kept", "early3.txt", "kept", "manifest.json"]
    assert sorted(store.manifest(Litter()).files) == ["below/kept", "early3.txt", "kept"]


def test_a_declared_file_that_is_missing_is_our_fault(store, monkeypatch):
    monkeypatch.setattr(Leaf, "run", lambda self, folder, context: None)
    with pytest.raises(StageBroken, match="leaf did not write value"):
        store.execute(Leaf(1), context(store))


class Killed(BaseException):
    pass


def test_a_kill_between_manifest_and_name_costs_nothing(store, monkeypatch):
    """The next one finds the finished work, checks it and gives it its name; nothing is computed again."""

    def kill(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store, "_publish", kill)
        with pytest.raises(Killed):
            store.execute(Leaf(1), context(store))
    work = store.folder(Leaf(1)).with_suffix(".work")
    assert (work / "manifest.json").exists() and not store.exists(Leaf(1))
    (work / "core").write_text("dumped")
    assert store.execute(Leaf(1), context(store)) and (store.open(Leaf(1)) / "runs").read_text() == "x"
    assert sorted(path.name for path in store.folder(Leaf(1)).iterdir()) == ["manifest.json", "runs", "value"]


@pytest.mark.parametrize("spoiled", ["value", "manifest.json"])
def test_finished_work_that_was_damaged_is_not_believed(store, monkeypatch, spoiled):
    def kill(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store, "_publish", kill)
        with pytest.raises(Killed):
            store.execute(Leaf(1), context(store))
    path = store.folder(Leaf(1)).with_suffix(".work") / spoiled
    path.write_text(path.read_text()[:-2] + "7}")
    store.execute(Leaf(1), context(store))
    assert (store.open(Leaf(1)) / "value").read_text() == "1" and (store.open(Leaf(1)) / "runs").read_text() == "xx"


def test_damaged_work_is_named_set_aside_and_begun_anew(store, monkeypatch):
    """What a stage finds in its work folder and cannot go on from."""
    said = []

    def run(self, folder, context):
        checkpoint = folder / "checkpoint"
        if checkpoint.exists() and checkpoint.read_text() != "whole":
            raise DamagedFile(checkpoint, "checksum")
        fresh = not checkpoint.exists()
        checkpoint.write_text("whole")
        if stop:
            raise Killed
        (folder / "value").write_text("anew" if fresh else "gone on")

    monkeypatch.setattr(Leaf, "run", run)
    stop = True
    with pytest.raises(Killed):
        store.execute(Leaf(1), context(store))
    stop = False
    (store.folder(Leaf(1)).with_suffix(".work") / "checkpoint").write_text("wh0le")
    assert store.execute(Leaf(1), Context(store, store.root, say=said.append))
    assert (store.open(Leaf(1)) / "value").read_text() == "anew"
    (line,) = said
    assert "checkpoint: damaged (checksum); set aside" in line and "begun anew" in line and "\n" not in line
    assert sorted(path.name for path in store.folder(Leaf(1)).parent.iterdir()) == [Leaf(1).key]


def test_a_damaged_input_is_not_the_stages_own_work(store, monkeypatch):
    store.execute(Leaf(1), context(store))

    def run(self, folder, context):
        raise DamagedFile(context.open(self.parts[0]) / "value", "checksum")

    monkeypatch.setattr(Sum, "run", run)
    with pytest.raises(StageFailed, match="value: damaged"):
        store.execute(Sum((Leaf(1),)), context(store))


@pytest.mark.parametrize("name", ["../../../outside", "/etc/hostname", "link/outside", "..", ""])
def test_a_manifest_names_nothing_outside_of_its_folder(store, name):
    store.execute(Leaf(1), context(store))
    folder = store.folder(Leaf(1))
    (store.root / "outside").write_text("mine")
    (folder / "link").symlink_to(store.root)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = manifest["files"]["value"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="which lies outside of"):
        Store(store.root).open(Leaf(1))


def test_a_note_of_a_failure_that_is_damaged(store):
    with pytest.raises(StageFailed):
        store.execute(Refusing(), context(store))
    next(store.root.rglob("*.failed")).write_bytes(b"\xff\xfe broken")
    assert store.state(Refusing()) == "failed" and "broken" in store.failure(Refusing())
