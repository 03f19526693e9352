"""Runs a study from Python: what the verb ``run`` does, with the long table as the answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pipeline import config as configuration
from pipeline import executors, publication
from pipeline.plan import plan
from pipeline.progress import Display
from pipeline.registry import UserError
from pipeline.store import StageBroken, StageFailed, Store
from pipeline.table import Row, read_long, select


@dataclass(frozen=True)
class Finished:
    """A study that has been run.

    name: of the study. folder: its report, with ``index.html``. rows: of the long table, see `pipeline.table`.
    """

    name: str
    folder: Path
    rows: list[Row]

    def select(self, **wanted: Any) -> list[Row]:
        """The rows whose columns have these values: ``select(kind="bias", measure="cev", seed=None)``."""
        return select(self.rows, **wanted)


def study(
    config: str | Path,
    *overrides: str,
    results: str | Path = "results",
    data: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Finished:
    """Runs a study, as far as its results do not exist yet, and publishes its report.

    Args:
        config: a YAML file. overrides: such as ``"seeds=2"``, in place of what the file says.
        results, data: folders, as for ``--results`` and ``--data``.
        say: is given each line that tells how far it is; nothing is said otherwise.

    Stages run one at a time in this process, unless an override says ``workers=2`` or more. Then the calling script
    must keep its own work under ``if __name__ == "__main__":``, as for every use of ``multiprocessing``.

    Raises:
        UserError: a mistake in the configuration, or stages that failed (StageFailed), with the reasons.
    """
    if not str(results):  # Path("") would be this folder
        raise UserError("results: empty; give a folder")
    results = Path(results)
    data_root = results / "data" if data is None else Path(data)
    settings = configuration.load(Path(config), ["workers=1", *overrides])
    report = plan(settings, data_root).report
    store = Store(results)
    execution = executors.Execution(results, data_root, settings.device, settings.workers)
    with store.in_use(), _settings_kept():
        todo = executors.needed([report], store)
        for stage in todo:
            stage.check(data_root)
        outcome = executors.run_local(todo, execution, Display(_telling(say), len(todo)))
        if outcome.failed:
            broken = any(isinstance(reason, StageBroken) for _, reason in outcome.failed)
            reasons = "; ".join(f"{stage.label()}: {reason}" for stage, reason in outcome.failed)
            raise (StageBroken if broken else StageFailed)(reasons)
        folder = publication.publish(store, report, settings.study, say or (lambda line: None))
    return Finished(settings.study, folder, read_long(folder / "rows.csv"))


@contextlib.contextmanager
def _settings_kept() -> Iterator[None]:
    """Afterwards torch computes in this process as before: stages set its threads, and flush denormal numbers to 0."""
    threads = torch.get_num_threads()
    flushes = bool(torch.tensor(5e-324, dtype=torch.float64) * 2 == 0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushes)


def _telling(say: Callable[[str], None] | None) -> Console:
    """A console whose lines go to a function, or nowhere."""
    return Console(file=_Lines(say), width=200) if say else Console(quiet=True)


class _Lines:
    """A text file as far as a console writes to one; gives away whole lines."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._begun = say, ""

    def write(self, text: str) -> None:
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            self._say(line)

    def flush(self) -> None:
        """Nothing is kept back but a line that has no end yet."""
