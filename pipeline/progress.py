"""What a person sees while a study runs: a bar per stage in a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.stage import Stage


class Display:
    """Follows stages from start to end. Use as a context manager."""

    LINE_INTERVAL = 10.0  # seconds between plain lines of one stage

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.finished = console, total, 0
        self._lock = threading.Lock()  # reports arrive on a thread of their own
        self._bars: dict[str, TaskID] = {}
        self._since: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, stage: Stage) -> None:
        self._since[stage.key] = self._said[stage.key] = time.monotonic()
        self._bars[stage.key] = self._progress.add_task(stage.label(), total=None, values="")

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def report(self, stage: Stage, step: int, steps: int, values: dict[str, float]) -> None:
        text = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        with self._lock:
            if stage.key not in self._bars:
                return  # a message of a worker that arrived after its stage had ended
            self._progress.update(self._bars[stage.key], completed=step, total=steps, values=text)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._said[stage.key] > self.LINE_INTERVAL:
            self._said[stage.key] = now
            left = (now - self._since[stage.key]) * (steps - step) / max(step, 1)
            line = f"   ...   {stage.label()}: {step}/{steps}  {text}  {left:.0f} s left"
            self.console.print(line, markup=False, soft_wrap=True)

    def done(self, stage: Stage, *, computed: bool) -> None:
        self._end(stage)
        seconds = time.monotonic() - self._since[stage.key]
        word = f"{seconds:.1f} s" if computed else "made meanwhile by another process"
        self.console.print(
            f"[{self.finished}/{self.total}]  {stage.label()}  {word}", markup=False, highlight=False, soft_wrap=True
        )

    def failed(self, stage: Stage, reason: str) -> None:
        self._end(stage)
        self.console.print(f"FAILED  {stage.label()}: {reason}", markup=False, style="red", soft_wrap=True)

    def _end(self, stage: Stage) -> None:
        self.finished += 1
        with self._lock:
            self._progress.remove_task(self._bars.pop(stage.key))


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3f}"
