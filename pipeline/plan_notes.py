"""The plan of a study as it was made last, as keys: enough to see that nothing is missing, without loading torch.

A note is filed under a hash of the configuration and of this program's own code, and it names what the data held.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import LARGEST_CONFIGURATION, read_json, read_text, remove_debris, write_atomically
from pipeline.registry import FOREIGN, UserError
from pipeline.stage import digest

if TYPE_CHECKING:
    from pipeline.schema import Study
    from pipeline.stage import Stage
    from pipeline.store import Store


@dataclass(frozen=True)
class NotedStage:
    """A stage as a note holds it; see `pipeline.stage.Named`."""

    kind: str
    key: str
    text: str
    options_digest: str
    parts: tuple[NotedStage, ...]

    def inputs(self) -> tuple[NotedStage, ...]:
        return self.parts

    def label(self) -> str:
        return self.text

    def difference(self, stored: dict[str, Any]) -> str | None:
        return None if digest(stored) == self.options_digest else "made with other options"


@dataclass(frozen=True)
class NotedPlan:
    """study: its name. stages: inputs before users, the report last."""

    study: str
    stages: tuple[NotedStage, ...]

    @property
    def report(self) -> NotedStage:
        return self.stages[-1]


def place(results: Path, config: Path, overrides: Sequence[str]) -> Path | None:
    """Where the plan of a configuration is noted; None where its text alone does not tell what it says.

    It does not where it has an interpolation, which may read the environment, nor where somebody has registered methods
    or measures of their own in this process.
    """
    try:
        text = read_text(config, LARGEST_CONFIGURATION)
    except (OSError, UserError):
        return None  # to be refused in words by whoever reads it as a configuration
    if FOREIGN or "${" in "".join([text, *overrides]):
        return None
    said = hashlib.sha256(json.dumps([text, *overrides, _code()]).encode())
    return results / "plans" / f"{said.hexdigest()[:20]}.json"


def _code() -> str:
    """A hash of every source file of this package."""
    content = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()


def note(store: Store, path: Path, study: Study, stages: Sequence[Stage]) -> None:
    """Writes down a plan: its stages, inputs before users."""
    numbers = {stage.key: number for number, stage in enumerate(stages)}
    content = {
        "note": path.stem,
        "study": study.study,
        "identity": [
            next((stage.identity for stage in stages if stage.kind == "train"), ""),
            next((stage.groups_identity for stage in stages if stage.kind == "predict"), ""),
        ],
        "stages": [
            [
                stage.kind,
                stage.key,
                stage.label(),
                digest(stage.options()),
                sorted({numbers[part.key] for part in stage.inputs()}),
            ]
            for stage in stages
        ],
    }
    with store.lock(store.root / "locks" / "plans"):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_debris(path)
        if not path.is_dir() and not path.parent.is_symlink():  # somebody's own; a note only saves time
            write_atomically(path, json.dumps({"sha256": digest(content), "content": content}))


def recall(path: Path, config: Path, overrides: Sequence[str], data_root: Path) -> NotedPlan | None:
    """A noted plan; None where there is none that can be believed, or the data has changed since.

    Nothing in it is a path: where the data lies is read from the configuration.
    """
    try:
        written = read_json(path)
        content = written["content"]
        if written["sha256"] != digest(content) or content["note"] != path.stem:
            return None
        stages: list[NotedStage] = []
        for kind, key, text, options, inputs in content["stages"]:
            if not re.fullmatch(r"[a-z]+/[0-9a-f]{20}", f"{kind}/{key}"):  # they become paths
                return None
            parts = tuple(stages[number] for number in inputs)
            stages.append(NotedStage(kind, key, str(text), str(options), parts))
        name, identity = str(content["study"]), content["identity"]
        if not stages or stages[-1].kind != "report" or not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            return None
        if any(identity) and identity != _identity(config, overrides, data_root):
            return None
        return NotedPlan(name, tuple(stages))
    except (OSError, ValueError, KeyError, TypeError, IndexError, UserError):
        return None


def _identity(config: Path, overrides: Sequence[str], data_root: Path) -> list[str]:
    """Of the data that a configuration names, and of its groups; it has been read before, so that it is sound."""
    from pipeline import yamlfile
    from pipeline.data import DATASETS, Data
    from pipeline.registry import options_of

    told = yamlfile.load(config, overrides)["data"]
    told = {"name": told} if isinstance(told, str) else told
    own = {"name", *(option.name for option in options_of(DATASETS[told["name"]]))}
    dataset = DATASETS.build({name: value for name, value in told.items() if name in own}, "data")
    data = Data(dataset)
    return [data.identity(data_root), data.groups_identity(data_root)]
