"""The one walk: order, failures, what must be alone, and workers that end with their parent."""

import io
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline.executors import Execution, needed, run_local, walk
from pipeline.progress import Display
from pipeline.registry import UserError
from pipeline.stage import Context, Stage, in_order
from pipeline.store import StageBroken, StageFailed, Store


@dataclass(frozen=True)
class Step(Stage):
    optional_files = ("value",)
    number: int
    parts: tuple["Step", ...] = ()
    fails: bool = False

    def run(self, folder: Path, context: Context) -> None:
        if self.fails:
            raise UserError("as asked")
        (folder / "value").write_text(str(self.number))


@dataclass(frozen=True)
class Alone(Step):
    alone = True


class Record:
    """Submits to threads, and keeps what ran when."""

    def __init__(self, workers: int) -> None:
        self.pool, self.lock = ThreadPoolExecutor(workers), threading.Lock()
        self.running, self.most, self.order, self.crowded = set(), 0, [], []

    def submit(self, stage: Stage) -> Future:
        def run() -> bool:
            with self.lock:
                self.running.add(stage.key)
                self.order.append(stage.key)
                self.most = max(self.most, len(self.running))
                if len(self.running) > 1 and any(by_key[key].alone for key in self.running):
                    self.crowded.append(stage.key)
            by_key[stage.key] = stage
            time.sleep(0.0005)
            with self.lock:
                self.running.discard(stage.key)
            if stage.fails:
                raise StageFailed("as asked")
            return True

        by_key = self.__dict__.setdefault("by_key", {})
        by_key[stage.key] = stage
        return self.pool.submit(run)


def display(total=0):
    return Display(Console(file=io.StringIO()), total)


@st.composite
def graphs(draw):
    """Stages of which each needs some of the earlier ones."""
    stages = []
    for number in range(draw(st.integers(1, 9))):
        parts = draw(st.lists(st.sampled_from(stages), max_size=3, unique=True)) if stages else []
        kind = draw(st.sampled_from([Step, Step, Step, Alone]))
        stages.append(kind(number, tuple(parts), fails=draw(st.integers(0, 5)) == 0))
    return stages


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(1, 4))
def test_every_stage_after_its_inputs_and_failures_fail_their_dependants_only(stages, at_once):
    todo = in_order(stages)
    record = Record(at_once)
    outcome = walk(todo, record.submit, at_once=at_once, display=display(len(todo)))
    lost: set[str] = set()  # again, by the definition
    for stage in todo:
        if any(part.key in lost for part in stage.inputs()) or stage.fails:
            lost.add(stage.key)
    failed = {stage.key for stage, _ in outcome.failed}
    skipped = [stage.key for stage in outcome.skipped]
    assert {stage.key for stage in outcome.computed} == {stage.key for stage in todo} - lost
    assert failed | set(skipped) == lost and not failed & set(skipped)
    assert all(by.fails for by, _ in outcome.failed)
    assert record.most <= at_once and not record.crowded, "what measures time has the machine to itself"
    place = {key: number for number, key in enumerate(record.order)}
    for stage in outcome.computed:
        assert all(place[part.key] < place[stage.key] for part in stage.inputs())


def test_the_earliest_ready_stage_goes_first():
    """A study's first networks are finished before its last are begun."""
    chains = [Step(2, (Step(1, (Step(0),)),)), Step(12, (Step(11, (Step(10),)),))]
    record = Record(1)
    walk(in_order(chains), record.submit, at_once=1, display=display())
    assert record.order == [stage.key for stage in in_order(chains)]


def test_needed_is_what_is_missing_and_what_rests_on_it(tmp_path):
    store = Store(tmp_path)
    leaf, other = Step(0), Step(1)
    total = Step(2, (leaf, other))
    context = Context(store, tmp_path)
    assert needed([total], store) == [leaf, other, total]
    store.execute(leaf, context)
    assert needed([total], store) == [other, total]
    store.execute(other, context)
    store.execute(total, context)
    assert needed([total, other], store) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_with_and_without_workers(tmp_path, workers):
    bad = Step(3, fails=True)
    stages = [Step(2, (Step(1), Step(0))), Step(4, (bad,)), Alone(5)]
    store = Store(tmp_path)
    console = Console(file=io.StringIO())
    todo = needed(stages, store)
    outcome = run_local(todo, Execution(tmp_path, tmp_path, "cpu", workers), Display(console, len(todo)))
    assert {stage.number for stage in outcome.computed} == {0, 1, 2, 5}
    ((stage, reason),) = outcome.failed
    assert stage == bad and str(reason) == "as asked" and not isinstance(reason, StageBroken)
    assert [stage.number for stage in outcome.skipped] == [4]
    assert (store.open(stages[0]) / "value").read_text() == "2"
    assert "FAILED  step: as asked" in console.file.getvalue()


def test_what_a_stage_says_is_shown_from_a_worker(tmp_path):
    console = Console(file=io.StringIO(), width=200)
    todo = [Saying(), Step(0)]
    run_local(todo, Execution(tmp_path, tmp_path, "cpu", 2), Display(console, 2))
    assert "a line for the person" in console.file.getvalue()


@dataclass(frozen=True)
class Saying(Stage):
    def run(self, folder: Path, context: Context) -> None:
        context.say("a line for the person")


def test_threads_divide_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert Execution(Path(), Path(), "cpu").resolved(threads=1).workers == 8
    assert Execution(Path(), Path(), "cpu").resolved(threads=3).workers == 2
    assert Execution(Path(), Path(), "cpu", workers=5).resolved(threads=3).workers == 5
