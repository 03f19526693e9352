"""Writes the generated parts of these pages from registries and schema: ``python docs/generate.py``, or ``make docs``.

A page holds prose and, between two marks, what a function of this file makes. ``--check`` changes nothing and names the
pages that are not current, with exit status 1.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline import models, recovery  # noqa: E402
from pipeline.bias import MEASURES  # noqa: E402
from pipeline.data import DATASETS, Augmentation, Data  # noqa: E402
from pipeline.distillation import LOSSES  # noqa: E402
from pipeline.pruning import METHODS, SCHEDULES  # noqa: E402
from pipeline.registry import Registry, options_of  # noqa: E402
from pipeline.schema import Recovery, Study  # noqa: E402
from pipeline.similarities import SIMILARITIES  # noqa: E402
from pipeline.statistics import Claim, Place  # noqa: E402
from pipeline.training import Fit  # noqa: E402

WIDTH = 120
BLOCK = re.compile(r"(<!-- generated: (?P<name>[\w ]+) -->\n).*?(<!-- end of (?P=name) -->\n)", re.DOTALL)


# ------------------------------------------------------------------------------------------------ what classes say


def paragraphs(documented: object) -> list[str]:
    """The paragraphs of a docstring of its own, each on one line, with names in Markdown's single quotes."""
    text = inspect.cleandoc(getattr(documented, "__dict__", {}).get("__doc__") or "")
    found = [re.sub(r"\s+", " ", part).strip() for part in text.split("\n\n")]
    found = [re.sub(r":\w+:`([^`]+)`", r"`\1`", part.replace("``", "`")) for part in found]
    return [part for part in found if part and not part.startswith(("Raises:", "Args:"))]


def yaml_of(value: Any) -> str:
    """A default as somebody would write it into YAML; empty where there is none."""
    if value is dataclasses.MISSING:
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if dataclasses.is_dataclass(value):
        return value.called() if hasattr(value, "called") else _options_of_value(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(yaml_of, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {yaml_of(part)}' for key, part in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _options_of_value(value: Any) -> str:
    """A registered value by its name, with options that are not the defaults; any other by these options alone."""
    changed = []
    for field in dataclasses.fields(value):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if (part := getattr(value, field.name)) != default:
            changed.append(f"{field.name}: {yaml_of(part)}")
    name = getattr(type(value), "name", None)
    if isinstance(name, str):
        return f"{{name: {name}, {', '.join(changed)}}}" if changed else name
    return f"{{{', '.join(changed)}}}"


# ------------------------------------------------------------------------------------------------ Markdown


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def prose(text: str, *, bullet: bool = False) -> str:
    indent = "- " if bullet else ""
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent)) + "\n"


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def summary(cls: type) -> str:
    """The first sentence or paragraph of what a class says of itself."""
    return next(iter(paragraphs(cls)), "")


def by_module(registry: Registry) -> dict[str, list[str]]:
    """Names of a registry by the module that their classes stand in."""
    found: dict[str, list[str]] = {}
    for name in registry:
        found.setdefault(registry[name].__module__, []).append(name)
    return found


def own_options(cls: type, shared: type | None = None) -> str:
    """``name = default`` of the options that a class adds to those of all its kind."""
    known = {field.name for field in dataclasses.fields(shared)} if shared else set()
    found = [
        code(f"{option.name}: {yaml_of(option.default)}") for option in options_of(cls) if option.name not in known
    ]
    return ", ".join(found)


def option_table(cls: type, prefix: str = "") -> str:
    rows = [
        [code(prefix + option.name), option.allowed, code(yaml_of(option.default)), option.description]
        for option in options_of(cls)
    ]
    return table(("key", "takes", "default", "meaning"), rows)


def notes(registry: Registry, names: Iterable[str]) -> str:
    """What classes say beyond their summary: a list of their own words, and a table of what their options mean."""
    said = "".join(
        prose(f"`{name}`: {' '.join(rest)}", bullet=True) for name in names if (rest := _rest(registry[name]))
    )
    base = _shared(registry)
    shared = {field.name for field in dataclasses.fields(base)} if dataclasses.is_dataclass(base) else set()
    meaning: dict[tuple[str, str, str], list[str]] = {}
    for name in names:
        for option in options_of(registry[name]):
            if option.name not in shared and option.description:
                meaning.setdefault((option.name, option.allowed, option.description), []).append(name)
    rows = [
        [code(option), "all of these" if users == list(names) else ", ".join(map(code, users)), kind, description]
        for (option, kind, description), users in sorted(meaning.items())
    ]
    return "\n".join(part for part in (said, rows and table(("option", "of", "takes", "meaning"), rows)) if part)


# ------------------------------------------------------------------------------------------------ the blocks


def bias_measures() -> str:
    def needs(measure) -> str:
        found = [
            ("logits", measure.needs_logits),
            ("the same examples in the same order", measure.needs_pairing),
            ("groups", measure.needs_groups),
            ("all trials together", measure.over_trials),
        ]
        return ", ".join(words for words, needed in found if needed)

    heads = ("name", "what", "source", "equation (a dash marks the candidate)", "unit", "better", "interval")
    heads += ("margin", "needs")
    rows = []
    for name in MEASURES:
        each = MEASURES[name]
        interval = "simultaneous" if getattr(each, "simultaneous", False) else each.interval
        of_its = (each.title, each.source, each.equation, each.unit, each.better, interval)
        rows.append([code(name), *of_its, margin(each), needs(each)])
    return table(heads, rows)


def margin(measure: type) -> str:
    """Up to which ratio or difference from a yardstick a change of it counts as none."""
    if not measure.compares or measure.margin is None:
        return ""
    size = f"{measure.margin:.3g}"
    return f"1/{size} to {size} times" if measure.comparison == "ratio" else f"±{size}"


def similarity_measures() -> str:
    rows = []
    for name in SIMILARITIES:
        each = SIMILARITIES[name]
        rows.append([code(name), each.title, each.source, each.unit, each.better, yaml_of(each.itself)])
    return table(("name", "what", "source", "unit", "better", "of a network with itself"), rows)


def losses() -> str:
    parts = []
    for module, names in by_module(LOSSES).items():
        parts.append(f"### {module.rpartition('.')[2]}\n")
        parts.append(prose(summary(sys.modules[module])))
        rows = []
        for name in names:
            cls = LOSSES[name]
            reads = "labels" if not cls.needs_teacher else "features" if cls.needs_features else "logits"
            rows.append([code(name), yaml_of(cls().weight), reads, own_options(cls, _shared(LOSSES)), summary(cls)])
        parts.append(table(("name", "weight", "reads", "other options", "what it is"), rows))
        parts.append(notes(LOSSES, names))
    return "\n".join(filter(None, parts)).rstrip("\n") + "\n"


def pruning_methods() -> str:
    parts = []
    for module, names in by_module(METHODS).items():
        parts.append(f"### {module.rpartition('.')[2]}\n")
        parts.append(prose(summary(sys.modules[module])))
        rows = []
        for name in names:
            cls = METHODS[name]
            grows = "yes" if cls.grows else "no"
            rows.append([code(name), own_options(cls, _shared(METHODS)), grows, summary(cls)])
        parts.append(table(("name", "options", "may grow during training", "what goes"), rows))
        parts.append(notes(METHODS, names))
    return "\n".join(filter(None, parts)).rstrip("\n") + "\n"


def options_of_all_methods() -> str:
    return option_table(_shared(METHODS))


def pruning_schedules() -> str:
    rows = [[code(name), own_options(SCHEDULES[name]), summary(SCHEDULES[name])] for name in SCHEDULES]
    return f"{table(('name', 'options', 'what it does'), rows)}\n{notes(SCHEDULES, list(SCHEDULES))}"


def study_keys() -> str:
    return option_table(Study)


def recovery_options() -> str:
    """The keys of a recovery, and what may be registered for those of them that have a registry."""
    parts = [option_table(Recovery)]
    for registry in (recovery.STARTS, recovery.SELECTIONS, recovery.MIXTURES, recovery.UPDATES):
        rows = [[code(name), own_options(registry[name]), summary(registry[name])] for name in registry]
        parts += [table((registry.kind, "options", "what it is"), rows), notes(registry, list(registry))]
    return "\n".join(filter(None, parts))


def claim_options() -> str:
    return f"{option_table(Claim)}\n{option_table(Place, 'at.')}"


def fit_options() -> str:
    return f"{option_table(Fit)}\n{option_table(Augmentation, 'augmentation.')}"


def data_options() -> str:
    rows = [[code(name), own_options(DATASETS[name]), summary(DATASETS[name])] for name in DATASETS]
    shared = [option for option in options_of(Data) if option.name != "dataset"]
    keys = [[code(option.name), option.allowed, code(yaml_of(option.default)), option.description] for option in shared]
    parts = (
        table(("name", "options", "what it is"), rows),
        notes(DATASETS, list(DATASETS)),
        table(("key of every dataset", "takes", "default", "meaning"), keys),
    )
    return "\n".join(parts)


def networks() -> str:
    own = [name for family in models.NETWORKS if family != "torchvision" for name in models.NETWORKS[family].names()]
    return prose(", ".join(map(code, own)) + ", and every torchvision classifier by its name.")


def _shared(registry: Registry) -> type:
    """The class that all of a registry's classes come from, with the options that they share."""
    classes = [registry[name] for name in registry]
    return next(parent for parent in classes[0].__mro__[1:] if all(issubclass(cls, parent) for cls in classes))


def _rest(cls: type) -> list[str]:
    """The further paragraphs of what a class says."""
    return paragraphs(cls)[1:]


BLOCKS: dict[str, Callable[[], str]] = {
    "bias measures": bias_measures,
    "similarity measures": similarity_measures,
    "losses": losses,
    "pruning methods": pruning_methods,
    "options of all methods": options_of_all_methods,
    "pruning schedules": pruning_schedules,
    "study keys": study_keys,
    "claim options": claim_options,
    "fit options": fit_options,
    "recovery options": recovery_options,
    "data options": data_options,
    "networks": networks,
}


def current(text: str) -> str:
    """A page with its generated parts made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{BLOCKS[match['name']]()}\n{match[3]}", text)


def main(arguments: list[str]) -> int:
    outdated = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (made := current(text)) != text:
            outdated.append(page.name)
            if "--check" not in arguments:
                page.write_text(made, encoding="utf-8")
    if outdated:
        print(f"{', '.join(outdated)}: {'not current; run make docs' if '--check' in arguments else 'written'}")
    return 1 if outdated and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
