"""Walks a study's stages: those that exist are left alone, the others are made, independent ones side by side."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from pipeline.progress import Display
from pipeline.registry import UserError
from pipeline.stage import Context, Stage, StageFailed, Store


@dataclass(frozen=True)
class Execution:
    """Where and with what a study runs; none of it can change a result's name.

    results: the folder of store and reports. data_root: downloads and image caches.
    device: "cpu", "cuda" or "auto". workers: stages at a time (0: one per core on CPUs, one on a GPU).
    threads: of each worker (0: the cores divided among the workers; two processes of two threads each on two cores run
    at a quarter of the speed of one).
    """

    results: Path
    data_root: Path
    device: str = "auto"
    workers: int = 0
    threads: int = 0

    def resolved(self) -> Execution:
        """With every "auto" and 0 replaced by what this machine has."""
        device = self.device
        if device in ("auto", "cuda"):
            import torch

            if device == "cuda" and not torch.cuda.is_available():
                raise UserError("device: no CUDA device is usable here; choose device=cpu or device=auto")
            device = "cuda" if torch.cuda.is_available() else "cpu"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = self.workers or (cores if device == "cpu" else 1)
        return Execution(self.results, self.data_root, device, workers, self.threads or max(1, cores // workers))


@dataclass
class Outcome:
    """computed: stages made by this run. found: stages that existed. failed: stage and reason, in order."""

    computed: list[Stage] = field(default_factory=list)
    found: int = 0
    failed: list[tuple[Stage, StageFailed]] = field(default_factory=list)
    skipped: list[Stage] = field(default_factory=list)


def needed(targets: list[Stage], store: Store) -> tuple[list[Stage], int]:
    """The stages that must be made, inputs before users, and how many of those asked for exist.

    What a finished stage was made from may be gone; where it is there, it has to be as it was, or both are made again.
    """
    order: dict[str, Stage] = {}
    existing: set[str] = set()

    def visit(stage: Stage) -> None:
        if stage.key in order or stage.key in existing:
            return
        done = store.done(stage)
        inputs = [part for part in stage.inputs() if not done or store.exists(part)]
        for part in inputs:
            visit(part)
        if done and not any(part.key in order for part in inputs):
            existing.add(stage.key)
        else:
            order[stage.key] = stage

    for target in targets:
        visit(target)
    return list(order.values()), len(existing)


def run_local(targets: list[Stage], execution: Execution, console: Console) -> Outcome:
    """Makes what is missing with worker processes on this machine.

    A failed stage fails what depends on it and nothing else.
    """
    store = Store(execution.results)
    todo, found = needed(targets, store)
    outcome = Outcome(found=found)
    if not todo:
        return outcome
    execution = execution.resolved()
    workers = min(execution.workers, len(todo))
    with Display(console, len(todo)) as display:
        if workers == 1:
            prepare_process(execution.threads)
            _walk_alone(todo, execution, store, display, outcome)
        else:
            _walk_together(todo, execution, workers, display, outcome)
    return outcome


def _context(execution: Execution, store: Store, report: Callable[[int, int, dict[str, float]], None]) -> Context:
    return Context(store, execution.data_root, execution.device, execution.threads, report)


def _walk_alone(todo: list[Stage], execution: Execution, store: Store, display: Display, outcome: Outcome) -> None:
    lost: set[str] = set()
    for stage in todo:
        if any(part.key in lost for part in stage.inputs()):
            lost.add(stage.key)
            outcome.skipped.append(stage)
            continue
        display.start(stage)
        context = _context(
            execution, store, lambda step, steps, values, stage=stage: display.report(stage, step, steps, values)
        )
        try:
            computed = store.execute(stage, context, lambda stage=stage: display.waiting(stage))
        except StageFailed as error:
            lost.add(stage.key)
            outcome.failed.append((stage, error))
            display.failed(stage, str(error))
            continue
        if computed:
            outcome.computed.append(stage)
        display.done(stage, computed=computed)


def _walk_together(todo: list[Stage], execution: Execution, workers: int, display: Display, outcome: Outcome) -> None:
    by_key = {stage.key: stage for stage in todo}
    missing = {stage.key: {part.key for part in stage.inputs()} & by_key.keys() for stage in todo}
    order = list(by_key)  # inputs first, so the first ready stage is one that others wait for
    lost: set[str] = set()
    running: dict[Future[bool], str] = {}
    spawn = multiprocessing.get_context("spawn")
    events = spawn.SimpleQueue()
    listener = threading.Thread(target=_listen, args=(events, by_key, display), daemon=True)
    listener.start()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(execution.threads)
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=(execution, events))
    try:
        while order or running:
            for key in [key for key in order if missing[key] & lost]:
                order.remove(key)
                lost.add(key)
                outcome.skipped.append(by_key[key])
            ready = [key for key in order if not missing[key]]
            together = [key for key in ready if not by_key[key].alone]
            if not together and not running:  # what must run alone waits until nothing else can
                together = ready[:1]
            elif any(by_key[key].alone for key in running.values()):
                together = []
            for key in together[: workers - len(running)]:
                order.remove(key)
                display.start(by_key[key])
                running[pool.submit(_work, by_key[key])] = key
            if not running:
                continue
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                key = running.pop(future)
                stage = by_key[key]
                try:
                    computed = future.result()
                except StageFailed as error:
                    lost.add(key)
                    outcome.failed.append((stage, error))
                    display.failed(stage, str(error))
                    continue
                except BrokenProcessPool:
                    raise UserError(
                        f"{stage.label()}: a worker process was killed (out of memory?); run again to go on from the "
                        "last checkpoint, with fewer stages at a time if need be (workers=1)"
                    ) from None
                for others in missing.values():
                    others.discard(key)
                if computed:
                    outcome.computed.append(stage)
                display.done(stage, computed=computed)
    except BaseException:  # Ctrl-C above all: what a worker is at goes on from its checkpoint next time
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        events.put(None)
        listener.join(timeout=5)


def _listen(events, by_key: dict[str, Stage], display: Display) -> None:
    while (event := events.get()) is not None:
        key, step, steps, values = event
        if steps is None:
            display.waiting(by_key[key])
        else:
            display.report(by_key[key], step, steps, values)


_worker: tuple[Execution, Store, object] | None = None


def _start_worker(execution: Execution, events) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _end_with_parent()
    prepare_process(execution.threads)
    _worker = (execution, Store(execution.results), events)


def _work(stage: Stage) -> bool:
    execution, store, events = _worker
    report = lambda step, steps, values: events.put((stage.key, step, steps, values))  # noqa: E731
    waiting = lambda: events.put((stage.key, None, None, None))  # noqa: E731
    return store.execute(stage, _context(execution, store, report), waiting)


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


def _end_with_parent() -> None:
    """A worker whose parent is killed must not go on computing on its own."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(1)
