"""Kills a study at every write, rename, removal and flush, lets it go on, and compares every file.

A script of its own (``python tests/faults.py FOLDER --part 0 --parts 2``) because it forks: each trial is a copy of a
process that has loaded everything and runs one thread. A study is a chain of steps (planning, each stage, publication),
so a trial begins from a copy of what was there before its step, is killed by SIGKILL in it, and the step is done again.
A write that is the place of the kill is cut in half.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

CHANGES = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "link", "symlink", "truncate", "sendfile")
OPERATIONS = (*CHANGES, "fsync", "posix_fallocate")
TIMES = ("seconds", "training_seconds", "finished", "resumed")

STUDY = """
study: faults
seeds: 2
data: {name: image_folder, path: PATH, size: 8, colour: grey, validation: 0.3, test_share: 0.4}
network: resnet8
train: {epochs: 2, batch_size: 8, augmentation: {crop_padding: 1, flip: false}}
recover: {epochs: 2, batch_size: 8, learning_rate: 0.02, augmentation: {crop_padding: 0, flip: false}}
sparsities: [0.5]
prunings: [magnitude, channels, {name: magnitude, schedule: gradual}, {name: magnitude, title: rounds, schedule: {name:
  iterative, steps: 2, rewind: weights, epoch: 1}}]
recoveries: [{losses: kd, cache_logits: true}]
resamples: 100
smoothing: 0.5
similarity_examples: 8
workers: 1
"""


class Switch:
    """Counts operations that change the disk; at the one asked for, the process kills itself."""

    def __init__(self, at: int | None) -> None:
        self.at, self.count = at, 0

    def passes(self) -> bool:
        self.count += 1
        return self.count != self.at

    def off(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Replaces what changes the disk, here and for every library that asks for it by name."""

        def counted(function):
            def call(*arguments, **options):
                if not self.passes():
                    self.off()
                return function(*arguments, **options)

            return call

        for name in OPERATIONS:
            setattr(os, name, counted(getattr(os, name)))
        plain = io.open

        def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
            if not set(mode) & set("wax+"):
                return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if not self.passes():
                self.off()
            raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            raw.switch = self
            if buffering == 0:
                return raw
            buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        io.open = builtins.open = opened


class Raw(io.FileIO):
    """A file below its buffer: what is written here goes to the system."""

    switch: Switch

    def write(self, content):
        if not self.switch.passes():
            super().write(memoryview(content)[: len(content) // 2])
            self.switch.off()
        return super().write(content)


def in_a_copy_of_this_process(do, at: int | None) -> tuple[int, int]:
    """Runs ``do()`` in a fork with the switch set; how it ended (0, or the signal), and how many operations it took."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            switch = Switch(at)
            switch.install()
            do()
            os.write(writer, str(switch.count).encode())
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(said or 0)


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below: name -> hash, of a manifest without its times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = "folder"
        elif path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            found[name] = json.dumps({key: value for key, value in manifest.items() if key not in TIMES})
        elif path.name.startswith("images-"):  # decoded images have a name of their own at each decoding
            found[f"{path.parent.name}/images"] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "cache.json":
            known = json.loads(path.read_text())
            found[name] = json.dumps({key: value for key, value in known.items() if key not in ("images", "stamp")})
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="of the operations, try one in so many")
    chosen = parser.parse_args()
    return Trials(chosen.folder, chosen.part, chosen.parts, chosen.every).run()


class Trials:
    """All trials of one study, in a folder of their own."""

    def __init__(self, folder: Path, part: int, parts: int, every: int) -> None:
        self.folder, self.part, self.parts, self.every = folder.resolve(), part, parts, every
        self.results = self.folder / "results"
        self.study = self.folder / "faults.yaml"
        self.tried = self.number = 0
        self.faults: list[str] = []

    def make_images(self) -> None:
        import numpy as np
        from PIL import Image

        random = np.random.default_rng(0)
        for label, kind in enumerate(("dark", "light", "middle")):
            place = self.folder / "images" / kind
            place.mkdir(parents=True)
            for number in range(14):
                pixels = random.normal((60, 190, 125)[label], 60, (8, 8)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
        self.study.write_text(STUDY.replace("PATH", str(self.folder / "images")))

    def plan(self):
        from pipeline import config
        from pipeline.plan import plan as make_plan

        settings = config.load(self.study)
        return settings, make_plan(settings, self.results / "data")

    def planning(self) -> None:
        """What the command does before the first stage."""
        from pipeline import executors, plan_notes
        from pipeline.stage import in_order
        from pipeline.store import Store

        store = Store(self.results)
        settings, plan = self.plan()
        with store.in_use():
            for stage in executors.needed([plan.report], store):
                stage.check(self.results / "data")
            plan_notes.note(store, plan_notes.place(self.results, self.study, ()), settings, in_order([plan.report]))

    def stage(self, stage) -> None:
        from pipeline.stage import Context
        from pipeline.store import Store

        store = Store(self.results)
        store.execute(stage, Context(store, self.results / "data"))

    def publication(self) -> None:
        from pipeline import publication
        from pipeline.store import Store

        settings, plan = self.plan()
        publication.publish(Store(self.results), plan.report, settings.study, print)

    def run(self) -> int:
        from pipeline import executors, training
        from pipeline.pruning import size
        from pipeline.stage import in_order

        self.make_images()
        load_everything()
        executors.prepare_process(1)
        # A clock that gives every trial the same latencies, which the report repeats.
        ticks = itertools.count()
        size.time = type("Clock", (), {"perf_counter": staticmethod(lambda: next(ticks) * 1e-3)})
        self._count_epochs(training)
        self.warm_up()
        self.step("planning", self.planning)
        _, plan = self.plan()
        for stage in in_order([plan.report]):
            self.step(stage.label(), lambda stage=stage: self.stage(stage), epochs=epochs_of(stage))
        self.step("publication", self.publication)
        print(f"{self.number} operations, {self.tried} tried here, {len(self.faults)} faults")
        return bool(self.faults)

    def warm_up(self) -> None:
        """Takes the whole chain once, elsewhere: what torch prepares for each shape is prepared before the forks."""
        from pipeline.stage import in_order

        results, self.results = self.results, self.folder / "warm"
        self.planning()
        for stage in in_order([self.plan()[1].report]):
            self.stage(stage)
        self.publication()
        shutil.rmtree(self.results)
        self.results = results

    def _count_epochs(self, training) -> None:
        """Notes each epoch that is trained, in a file that a kill leaves."""
        save, notes = training._save, self.folder / "epochs"
        notes.mkdir()

        def counted(*arguments):
            os.close(os.open(notes / f"{time.monotonic_ns()}", os.O_CREAT))
            return save(*arguments)

        training._save = counted

    def step(self, name: str, do, *, epochs: int = 0) -> None:
        """Tries every kill in one step, then takes it."""
        before, kept = self.folder / "before", self.folder / "kept"
        shutil.rmtree(before, ignore_errors=True)
        if self.results.exists():
            shutil.copytree(self.results, before)
        ended, operations = in_a_copy_of_this_process(do, None)
        if ended:
            raise SystemExit(f"{name}: ended with {ended} though nothing was killed")
        after = contents(self.results)
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.results, kept)
        started = time.monotonic()
        for at in range(1, operations + 1):
            self.number += 1
            if self.number % self.every or self.number // self.every % self.parts != self.part:
                continue
            self.tried += 1
            shutil.rmtree(self.results)
            if before.exists():
                shutil.copytree(before, self.results)
            shutil.rmtree(self.folder / "epochs")
            (self.folder / "epochs").mkdir()
            ended, _ = in_a_copy_of_this_process(do, at)
            if ended != -signal.SIGKILL:
                self.fault(name, at, f"was not killed but ended with {ended}")
            ended, _ = in_a_copy_of_this_process(do, None)
            if ended:
                self.fault(name, at, f"ended with {ended} when it went on")
            found = contents(self.results)
            for path in sorted(after.keys() | found.keys()):
                if found.get(path) != after.get(path):
                    what = "is missing" if path not in found else "is a stray" if path not in after else "differs"
                    self.fault(name, at, f"{path} {what}")
            trained = len(list((self.folder / "epochs").iterdir()))
            if trained > epochs + 1:
                self.fault(name, at, f"{trained} epochs were trained where {epochs} and one repeated are enough")
        shutil.rmtree(self.results)
        shutil.copytree(kept, self.results)
        print(f"{operations:5} operations, {time.monotonic() - started:6.1f} s  {name}", flush=True)

    def fault(self, name: str, at: int, what: str) -> None:
        self.faults.append(what)
        print(f"FAULT: {name}, killed at operation {at}: {what}", flush=True)


def load_everything() -> None:
    """What stages load when they need it, so that no trial spends its time on that."""
    import ckatorch.hsic  # noqa: F401
    import scipy.stats  # noqa: F401
    import tensorboard.compat.proto.event_pb2  # noqa: F401
    import tensorboard.summary.writer.record_writer  # noqa: F401
    from matplotlib import pyplot

    from pipeline.report import figures, page  # noqa: F401

    pyplot.switch_backend("agg")
    pyplot.close(pyplot.figure())


def epochs_of(stage) -> int:
    fit = getattr(stage, "fit", None)
    return fit.epochs - getattr(stage, "start_epoch", 0) if fit else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
