"""A YAML file and key=value as plain dicts, lists, text and numbers; what YAML would silently change is refused."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.files import LARGEST_CONFIGURATION, read_text
from pipeline.registry import Mistakes, UserError, shown

DEEPEST = 32  # levels
PLAIN = re.compile(r"0|[1-9][0-9]*")  # a whole number that means what it says
OCTAL = re.compile(r"[-+]?0[0-7_]+")


def load(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a file, puts ``key=value`` in place of what it says, and resolves ``${...}``. Every key is text.

    Raises:
        UserError: no YAML, no mapping, a key twice, or a value that YAML reads as another one than it looks like.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    place = f"--config {path}"
    try:
        text = read_text(path, LARGEST_CONFIGURATION)
    except OSError as error:
        known = ", ".join(sorted(str(file) for file in path.parent.glob("*.yaml")))
        raise UserError(f"{place}: {error.strerror}" + (f"; there are {known}" if known else "")) from None
    except UserError as error:
        raise UserError(f"--config {error}") from None
    _check(text, place)
    try:
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        raise UserError(f"{place}: not YAML ({_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{place}: holds no mapping of keys to values")
    content = _with_text_keys(content)
    told: list[str] = []
    for override in overrides:
        try:
            _override(content, override)
        except UserError as error:
            told += str(error).splitlines()
    if told:
        raise UserError("\n".join(told))
    try:
        plain = OmegaConf.to_container(OmegaConf.create(content), resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{place}: {_line(error)}") from None
    mistakes = Mistakes()
    for where in _open_places(plain, ""):
        mistakes.add(where, "??? stands for a value that is still to be given; give it")
    mistakes.tell()
    return plain


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _override(content: dict[str, Any], override: str) -> None:
    """Puts what ``key=value`` says into the content; raises UserError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"{shown(override)}: an override has the form key=value, such as sparsities=[0.5,0.9]")
    _check(value, key)
    try:
        said = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)["value"]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{key}: {shown(value)} is no value ({_line(error)})") from None
    _put(content, key, _with_text_keys(said))


def _check(text: str, place: str) -> None:
    """Refuses what the loader would take for something else, or not come back from; syntax is left to it."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = _at(place, event)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UserError(f"{line}: nested deeper than {DEEPEST} levels")
            if getattr(event, "tag", None) not in (None, "!"):
                raise UserError(f"{line}: the tag {event.tag} is refused; write plain values")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return
    mistakes = Mistakes()
    if node is not None:
        _look(node, (), place, mistakes, set())
    mistakes.tell()


def _look(node: yaml.Node, path: tuple[str, ...], place: str, mistakes: Mistakes, seen: set[int]) -> None:
    """Notes what is wrong with a node and those below it, each looked at once however often an alias names it."""
    if id(node) in seen:
        return
    seen.add(id(node))
    where = ": ".join(filter(None, (_at(place, node), ".".join(path))))
    if isinstance(node, yaml.ScalarNode):
        number = node.tag.endswith((":int", ":float"))
        if number and (":" in node.value or OCTAL.fullmatch(node.value)):
            what = "a number of base 60" if ":" in node.value else "an octal number"
            mistakes.add(where, f"{node.value} is {what} to YAML; put text in quotes, or write the number without it")
    elif isinstance(node, yaml.SequenceNode):
        for number, part in enumerate(node.value):
            _look(part, (*path, str(number)), place, mistakes, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line, below = key.start_mark.line + 1, (*path, str(key.value))
            plain = key.tag.endswith((":str", ":merge")) or (key.tag.endswith(":int") and PLAIN.fullmatch(key.value))
            if not plain:  # true, a number of base 60, 8 or 16: as a key it would be another word than the one written
                mistakes.add(_at(place, key), f"{shown(str(key.value))} is no text to YAML; put it in quotes")
                continue
            if key.value in lines:
                mistakes.add(
                    ".".join(below), f"stands there twice, in lines {lines[key.value]} and {line}; keep one of them"
                )
            lines[key.value] = line
            _look(value, path if key.tag.endswith(":merge") else below, place, mistakes, seen)


def _at(place: str, found: yaml.Node | yaml.Event) -> str:
    """The place of something in a file, with its line; what stands behind ``key=`` is one line."""
    return f"{place}: line {found.start_mark.line + 1}" if place.startswith("--config") else place


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(part) for key, part in value.items()}
    return [_with_text_keys(part) for part in value] if isinstance(value, list) else value


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    """Puts a value at its place (``train.epochs``, ``recoveries.0.losses``); a mapping is merged into one there."""
    node, names = content, key.split(".")
    for number, name in enumerate(names):
        last = number == len(names) - 1
        if isinstance(node, list):
            if not name.isdecimal() or int(name) >= len(node):
                raise UserError(f"{key}: {'.'.join(names[:number])} is a list of {len(node)}; give a number below that")
            name = int(name)
        there = node[name] if isinstance(node, list) else node.get(name)
        if last:
            node[name] = _merged(there, value)
        elif isinstance(there, dict | list):
            node = there
        elif there is None:
            node[name] = node = {}
        else:
            before = ".".join(names[: number + 1])
            raise UserError(f"{key}: {before} is {shown(there)} in the file, which has no options; give {before} whole")


def _merged(before: Any, value: Any) -> Any:
    if isinstance(before, dict) and isinstance(value, dict):
        return before | {name: _merged(before.get(name), part) for name, part in value.items()}
    return value


def _open_places(value: Any, where: str) -> Iterator[str]:
    """Where ``???`` stands, which is OmegaConf's word for a value that is missing."""
    if value == "???":
        yield where
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from _open_places(part, f"{where}.{name}".lstrip("."))
