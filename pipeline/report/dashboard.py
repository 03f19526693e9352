"""Events for TensorBoard: the curves of training and the final measures, the same bytes for the same study."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from urllib.parse import quote

from pipeline.files import write_atomically
from pipeline.report.tables import Network, Study
from pipeline.report.words import origin_of

FILE = "events.out.tfevents"  # TensorBoard looks for this word in names; its own writer adds time and machine
LONGEST = 200  # bytes of a name; a disk takes 255


def write_events(folder: Path, study: Study) -> None:
    """One file per network, in folders that read as names of runs: ``magnitude 0.9/kd/seed0``."""
    for network in study.networks:
        run = network.run
        path = folder / _part(origin_of(run)) / _part(run["recovery"]) / f"seed{run['seed']}" / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, events(network))


def _part(name: str) -> str:
    """A name as one folder: it holds no other one and leads nowhere."""
    kept = quote(name, safe=" ,+()=&'") if any(c in name for c in "/\\\0") else name
    if not kept.strip(". "):
        return quote(kept, safe="").replace(".", "%2E") or "%"
    if len(kept.encode()) > LONGEST:
        return f"{kept[:40]}… {hashlib.sha256(kept.encode()).hexdigest()[:12]}"
    return kept


def events(network: Network) -> bytes:
    """The records: ``result/<measure>`` at step 0, then ``training/<term>`` by epoch.

    Wall times are steps: those of the clock would differ every time.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    writer.write(Event(wall_time=0, file_version="brain.Event:2").SerializeToString())

    def scalar(tag: str, value: float, step: int) -> None:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        writer.write(Event(wall_time=step, step=step, summary=summary).SerializeToString())

    results = {"sparsity_reached": network.run["sparsity_reached"], **network.values}
    for name, value in results.items():
        if value is not None:
            scalar(f"result/{name}", value, 0)
    for record in network.history:
        for name, value in record.items():
            if name != "epoch" and value is not None:
                scalar(f"training/{name}", value, int(record["epoch"]))
    return buffer.getvalue()
