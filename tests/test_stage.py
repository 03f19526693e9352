"""The store: keys, atomic folders, locks, checksums, changed defaults."""

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.executors import needed
from pipeline.registry import UserError
from pipeline.stage import OUTSIDE_KEY, Context, Stage, StageBroken, StageFailed, Store, walk, write_atomically


@dataclass(frozen=True)
class Leaf(Stage):
    number: int
    extra: float = 0.5
    title: str = field(default="", metadata=OUTSIDE_KEY)

    def run(self, folder: Path, context: Context) -> None:
        with (folder / "runs").open("a") as file:
            file.write("x")
        (folder / "value").write_text(str(self.number))


@dataclass(frozen=True)
class Sum(Stage):
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


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


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
    for part in walk([stage]):
        assert store.execute(part, context(store)) is True
        assert store.execute(part, context(store)) is False
    assert (store.open(stage) / "value").read_text() == "3"
    manifest = store.manifest(Leaf(1))
    assert manifest["options"]["extra"] == 0.5 and manifest["files"]["value"]["bytes"] == 1
    assert (store.open(Leaf(1)) / "runs").read_text() == "x"
    assert [store.state(part) for part in walk([stage])] == ["done"] * 3


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
    return [part for part in needed([stage], store)[0] if store.execute(part, context(store))]


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


def test_a_result_of_before_inputs_were_hashed_still_counts(store):
    total = Sum((Leaf(1),))
    make_again(store, total)
    path = store.folder(total) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"inputs": list(manifest["inputs"])}))
    assert make_again(store, total) == []


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
