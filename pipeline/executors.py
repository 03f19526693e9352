"""Walks a study's stages: those that exist are left alone, the others are made, independent ones side by side.

There is one walk. It is given a function that submits a stage and returns a future: `Here` runs it at once in this
process, `Workers` hands it to processes of this machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.registry import UserError
from pipeline.stage import Context, Named, Stage
from pipeline.store import StageFailed, Store

if TYPE_CHECKING:
    from pipeline.progress import Display

Submit = Callable[[Stage], "Future[bool]"]


@dataclass(frozen=True)
class Execution:
    """Where and with what a study runs; none of it can change a result's name.

    results: the folder of store and reports. data_root: downloads and image caches.
    device: "cpu", "cuda" or "auto". workers: stages at a time (0: as many as the cores serve, one on a GPU).
    """

    results: Path
    data_root: Path
    device: str = "auto"
    workers: int = 0

    def resolved(self, threads: int) -> Execution:
        """With "auto" and 0 replaced by what this machine has, where each stage uses so many threads."""
        device = self.device
        if device in ("auto", "cuda"):
            import torch

            if device == "cuda" and not torch.cuda.is_available():
                raise UserError("device: no CUDA device is usable here; choose device=cpu or device=auto")
            device = "cuda" if torch.cuda.is_available() else "cpu"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Two processes of two threads each on two cores run at a quarter of the speed of one.
        workers = self.workers or (max(1, cores // threads) if device == "cpu" else 1)
        return Execution(self.results, self.data_root, device, workers)


@dataclass
class Outcome:
    """computed: stages made by this run. failed: stage and reason, in order. skipped: what needed a failed one."""

    computed: list[Stage] = field(default_factory=list)
    failed: list[tuple[Stage, StageFailed]] = field(default_factory=list)
    skipped: list[Stage] = field(default_factory=list)


def needed(targets: Sequence[Named], store: Store) -> list[Named]:
    """The stages that must be made, inputs before users.

    What a finished stage was made from may be gone; where it is there, it has to be as it was, or both are made again.
    """
    order: dict[str, Named] = {}
    seen: set[str] = set()
    todo: list[tuple[Named, bool, bool]] = [(stage, False, False) for stage in reversed(targets)]
    while todo:
        stage, left, done = todo.pop()
        if left:
            if not done or any(part.key in order for part in stage.inputs()):
                order[stage.key] = stage
        elif stage.key not in seen:
            seen.add(stage.key)
            done = store.done(stage)
            todo.append((stage, True, done))
            todo += [(part, False, False) for part in reversed(stage.inputs()) if not done or store.exists(part)]
    return list(order.values())


def run_local(todo: Sequence[Stage], execution: Execution, display: Display) -> Outcome:
    """Makes stages on this machine, in this process or with workers.

    Args:
        todo: what `needed` gave.
    """
    if not todo:
        return Outcome()
    execution = execution.resolved(max(stage.threads for stage in todo))
    workers = min(execution.workers, len(todo))
    run = run_here(execution, display) if workers == 1 else run_in_workers(todo, execution, workers, display)
    with display, run as submit:
        return walk(todo, submit, at_once=workers, display=display)


def walk(todo: Sequence[Stage], submit: Submit, *, at_once: int, display: Display) -> Outcome:
    """Submits every stage once its inputs are made; a failed stage fails what depends on it and nothing else.

    Args:
        todo: inputs before users; the earliest of what is ready goes first, since others wait for it.
        submit: starts a stage; its future tells whether it was computed, or raises StageFailed.
        at_once: how many may be under way; a stage that must be alone waits until none is, and keeps the others out.
    """
    place = {stage.key: number for number, stage in enumerate(todo)}
    graph = TopologicalSorter(
        {key: [part.key for part in todo[number].inputs() if part.key in place] for key, number in place.items()}
    )
    graph.prepare()
    outcome, running = Outcome(), {}
    ready: list[int] = []  # two heaps of places
    alone: list[int] = []
    left = set(place)

    def start(number: int) -> None:
        stage = todo[number]
        left.discard(stage.key)
        display.start(stage)
        running[submit(stage)] = stage

    def end(future: Future[bool]) -> None:
        stage = running.pop(future)
        try:
            computed = future.result()
        except StageFailed as error:  # never told to the graph, so what needs it never becomes ready
            outcome.failed.append((stage, error))
            display.failed(stage, str(error))
            return
        graph.done(stage.key)
        if computed:
            outcome.computed.append(stage)
        display.done(stage, computed=computed)

    try:
        while True:
            for key in graph.get_ready():
                heapq.heappush(alone if todo[place[key]].alone else ready, place[key])
            if not any(stage.alone for stage in running.values()):
                while ready and len(running) < at_once:
                    start(heapq.heappop(ready))
                if alone and not running:
                    start(heapq.heappop(alone))
            if not running:
                outcome.skipped = [stage for stage in todo if stage.key in left]
                return outcome
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                end(future)
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed (out of memory?); run again to go on from the last checkpoint, with fewer "
            "stages at a time if need be (workers=1)"
        ) from None


@contextlib.contextmanager
def run_here(execution: Execution, display: Display) -> Iterator[Submit]:
    """Stages run in this process, one after the other."""
    store = Store(execution.results)

    def submit(stage: Stage) -> Future[bool]:
        context = Context(
            store,
            execution.data_root,
            execution.device,
            lambda step, steps, values: display.report(stage, step, steps, values),
            display.say,
        )
        prepare_process(stage.threads)
        future: Future[bool] = Future()
        try:
            future.set_result(store.execute(stage, context))
        except StageFailed as error:
            future.set_exception(error)
        return future

    yield submit


# ---------------------------------------------------------------------------------------------- worker processes


def start_server() -> None:
    """Starts, in the background, the process that workers are copies of: what they need is imported once, in it.

    Called early, so that it imports while this process plans.
    """
    if _start_method() == "forkserver":
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # libraries of linear algebra start their threads on import
        os.environ.setdefault("MKL_NUM_THREADS", "1")
        multiprocessing.set_forkserver_preload(["pipeline.worker_imports"])
        # Ctrl-C reaches every process of a terminal; this one ends when its parent does, whatever it is importing.
        former = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, former)


def _start_method() -> str:
    return "forkserver" if sys.platform == "linux" else "spawn"


@contextlib.contextmanager
def run_in_workers(todo: Sequence[Stage], execution: Execution, workers: int, display: Display) -> Iterator[Submit]:
    """Stages run in worker processes of this machine; on the way out by an exception these are ended at once."""
    start_server()
    by_key = {stage.key: stage for stage in todo}
    processes = multiprocessing.get_context(_start_method())
    events = processes.SimpleQueue()
    listener = threading.Thread(target=_listen, args=(events, by_key, display), daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(workers, mp_context=processes, initializer=_start_worker, initargs=(execution, events))
    try:
        yield lambda stage: pool.submit(_work, stage)
    except BaseException:  # Ctrl-C above all: what a worker is at goes on from its checkpoint next time
        for child in multiprocessing.active_children():
            child.terminate()
        # One of them may have held a lock, of the queue of events or of the pool, that nobody will ever give back: both
        # are left alone from here on. See the end of `pipeline.__main__`.
        raise
    pool.shutdown()
    events.put(None)
    listener.join(timeout=5)


def _listen(events, by_key: dict[str, Stage], display: Display) -> None:
    while (event := events.get()) is not None:
        key, step, steps, values = event
        if key is None:
            display.say(values)
        else:
            display.report(by_key[key], step, steps, values)


_worker: tuple[Execution, Store, object] | None = None


def _start_worker(execution: Execution, events) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    end_with_parent()
    _worker = (execution, Store(execution.results), events)


def _work(stage: Stage) -> bool:
    execution, store, events = _worker
    prepare_process(stage.threads)
    context = Context(
        store,
        execution.data_root,
        execution.device,
        lambda step, steps, values: events.put((stage.key, step, steps, values)),
        lambda line: events.put((None, 0, 0, line)),
    )
    return store.execute(stage, context)


def prepare_process(threads: int) -> None:
    """Settings of a process that computes; none of them changes a result beyond the number of threads."""
    import torch

    torch.set_num_threads(threads)
    # Pruned networks breed denormal numbers, which take a slow path in the processor.
    torch.set_flush_denormal(True)
    if sys.platform == "linux":
        # Let malloc keep large blocks: handing them back after every step costs page faults at the next.
        trim_threshold, mmap_threshold = -1, -3
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def end_with_parent() -> None:
    """A worker, or the server that workers are copies of, must not go on by itself when its parent is killed."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(1)
