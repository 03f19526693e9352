"""From a YAML file and key=value to a checked study, with every mistake in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import models, pruning, recovery, yamlfile
from pipeline.registry import WRONG, Mistakes, listed, made, nearest, options_of, read_fields, read_options, shown
from pipeline.schema import LONGEST_TITLE, RESERVED, Pruning, Recovery, Reference, Study
from pipeline.statistics import Claim
from pipeline.training import Fit


def load(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Reads a YAML file and applies ``key=value`` overrides.

    Raises:
        UserError: every mistake in a line of its own, with path, value, what is allowed and the nearest known name.
    """
    return parse(yamlfile.load(path, overrides))


def parse(content: Mapping[str, Any]) -> Study:
    """Checks a plain mapping, with text for keys, against the schema; raises UserError as `load`."""
    mistakes = Mistakes()
    told = {key: part for key, part in content.items() if key != "recoveries"}
    found = read_fields(Study, told, "", mistakes)
    defaults = {option.name: option.default for option in options_of(Study)}
    given = content.get("recoveries", [one.called() for one in defaults["recoveries"]])
    budgets = found.get("budgets", ())
    found["recoveries"] = _read_recoveries(given, mistakes, found)
    if budgets and budgets is not WRONG:
        _refuse_epochs_beside_budgets(given, mistakes)
        found["recoveries"] = _with_budgets(found["recoveries"], budgets, mistakes)
    chosen = {name: found.get(name, defaults[name]) for name in ("prunings", "recoveries", "train")}
    for name in ("prunings", "recoveries"):
        if chosen[name] is not WRONG:
            _check_titles(name, [one.called() for one in chosen[name]], mistakes)
    if any(one.losses and one.called() == RESERVED["recoveries"] for one in _valid(chosen["recoveries"])):
        mistakes.add("recoveries", "the title 'none' stands for no training; choose another")
    if RESERVED["prunings"] in [one.called() for one in _valid(chosen["prunings"])]:
        mistakes.add("prunings", "the title 'dense' stands for the dense networks; choose another")
    if isinstance(name := found.get("study"), str) and (
        not name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        or name.startswith(".")
        or len(name.encode()) > 80
    ):
        mistakes.add(
            "study", f"{shown(name)} becomes a folder; use at most 80 (in bytes) letters, digits, '-', '_' and '.'"
        )
    if not len(mistakes):
        _check_schedules(chosen["prunings"], chosen["recoveries"], chosen["train"], bool(budgets), mistakes)
        sparsities = found.get("sparsities", defaults["sparsities"])
        _check_claims(found.get("claims", ()), chosen["prunings"], sparsities, chosen["recoveries"], mistakes)
    mistakes.tell()
    return Study(**found, resolved=_filled(content, defaults))


def _valid(values: Any) -> Iterable[Any]:
    return () if values is WRONG else [one for one in values if one is not WRONG]


def _filled(content: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the defaults of keys that it does not name, as YAML could hold them.

    In the order of the schema: the same in other words is the same report.
    """
    plain = {
        "train": {},
        "recover": {},
        "prunings": [one.called() for one in defaults["prunings"]],
        "recoveries": [one.called() for one in defaults["recoveries"]],
    }
    return {
        name: content[name] if name in content else plain.get(name, list(value) if isinstance(value, tuple) else value)
        for name, value in defaults.items()
    }


def _read_recoveries(value: Any, mistakes: Mistakes, study: Mapping[str, Any]) -> tuple[Recovery, ...]:
    found = [_read_recovery(part, place, mistakes, study) for place, part in listed(value, "recoveries")]
    return WRONG if WRONG in found else tuple(found)


def _read_recovery(value: Any, where: str, mistakes: Mistakes, study: Mapping[str, Any]) -> Recovery:
    """A recovery; fit and teachers say what is other than in the sections of the study, or in what was read of it."""
    values = {"losses": value} if isinstance(value, str) else value
    if not isinstance(values, Mapping):
        mistakes.add(where, f"{shown(value)} is no recovery; give none, finetune, or losses such as kd")
        return WRONG
    before = len(mistakes)
    own = {name: part for name, part in values.items() if name not in ("fit", "teachers")}
    found = read_fields(Recovery, {"losses": None, **own}, where, mistakes)
    start = found.get("start", WRONG)
    section = _section(study, "recover" if start is WRONG else start.follows)
    trained = _section(study, "train").epochs
    if start is not WRONG and max(start.early_epochs, default=0) > trained:
        mistakes.add(f"{where}.start", f"goes back to epoch {max(start.early_epochs)}, but train has only {trained}")
    changes = values.get("fit")
    found["fit"] = section if changes is None else read_options(Fit, changes, f"{where}.fit", mistakes, section)
    found["own_fit"] = changes is not None
    if values.get("teachers") is not None:
        found["teachers"] = _read_teachers(values["teachers"], f"{where}.teachers", mistakes, study)
    losses = values.get("losses")
    if isinstance(losses, str) and losses != RESERVED["recoveries"] and "title" not in values:
        found["title"] = losses
        if len(losses) > LONGEST_TITLE:
            mistakes.add(f"{where}.title", f"missing; the losses are longer than {LONGEST_TITLE} characters")
    if len(mistakes) > before:
        return WRONG
    return made(Recovery, found, where, mistakes)


def _section(study: Mapping[str, Any], name: str) -> Fit:
    section = study.get(name, WRONG)
    return Fit() if section is WRONG else section


def _read_teachers(value: Any, where: str, mistakes: Mistakes, study: Mapping[str, Any]) -> tuple[Reference, ...]:
    """``parent``, ``{network, train, seeds}`` (each the study's own where it is absent), or a list of these."""
    network = study.get("network", WRONG)
    # Where the study's own is wrong the study is refused; any other serves to look for more mistakes.
    base = Reference(models.network("resnet8") if network is WRONG else network, _section(study, "train"))
    found = []
    for place, part in listed(value, where) if isinstance(value, list | tuple) else [(where, value)]:
        if part != "parent" and not isinstance(part, Mapping):
            said = "give parent, or a mapping such as {seeds: [1, 2, 3]}"
            mistakes.add(place, f"{shown(part)} is no teacher; {said}")
            continue
        found.append(read_options(Reference, {} if part == "parent" else part, place, mistakes, base))
    if not found and value in ([], ()):
        mistakes.add(where, "empty; name a teacher, or leave it out for the dense parent")
    return WRONG if WRONG in found else tuple(found)


# ----------------------------------------------------------------------------------------------------------- checks


def _refuse_epochs_beside_budgets(given: Any, mistakes: Mistakes) -> None:
    for place, value in listed(given, "recoveries"):
        fit = value.get("fit") if isinstance(value, Mapping) else None
        if isinstance(fit, Mapping) and "epochs" in fit:
            mistakes.add(f"{place}.fit.epochs", "the study's budgets set it; drop one of the two")


def _with_budgets(
    recoveries: tuple[Recovery, ...], budgets: tuple[int, ...], mistakes: Mistakes
) -> tuple[Recovery, ...]:
    """Each recovery once for each of the study's budgets."""
    found = []
    for number, one in enumerate(_valid(recoveries)):
        for epochs in budgets if one.losses else budgets[:1]:
            title = f"{one.called()}, {epochs} epochs"
            changes = {"title": title, "fit": replace(one.fit, epochs=epochs), "own_fit": True}
            found.append(made(Recovery, changes if one.losses else {}, f"recoveries.{number}", mistakes, one))
    return WRONG if recoveries is WRONG or WRONG in found else tuple(found)


def _check_titles(key: str, titles: Sequence[str], mistakes: Mistakes) -> None:
    for title in sorted({title for title in titles if titles.count(title) > 1}):
        mistakes.add(key, f"'{title}' stands there twice; give each a title of its own")
    if not titles:
        mistakes.add(key, "empty; name at least one")
    for title in titles:
        if len(title) > LONGEST_TITLE or title.startswith(".") or not title.isprintable() or set(title) & set("/\\"):
            said = f"names folders too; use at most {LONGEST_TITLE} characters, no / or \\"
            mistakes.add(key, f"the title {shown(title)} {said}")


def _check_schedules(
    prunings: Sequence[Pruning], recoveries: Sequence[Recovery], train: Fit, budgeted: bool, mistakes: Mistakes
) -> None:
    """Notes recoveries that do not go with the schedule of a pruning."""
    for one in prunings:
        schedule, title = one.schedule, one.called()
        if isinstance(schedule, pruning.OneShot):
            continue
        rounds = isinstance(schedule, pruning.Iterative)
        back = rounds and schedule.rewind != "none"
        for other in recoveries:
            name = f"'{other.called()}'"
            if not other.losses:
                mistakes.add(
                    "recoveries",
                    f"{name} does not train, which the schedule {schedule.name} of pruning '{title}' needs; leave one "
                    "of them out",
                )
            if rounds and other.start != recovery.Kept():
                mistakes.add(
                    "recoveries",
                    f"{name} starts {other.start.name}, but pruning '{title}' says itself where each of its rounds "
                    "starts; leave the start or that pruning out",
                )
            if back and other.own_fit and not budgeted:
                mistakes.add(
                    "recoveries",
                    f"{name} has a fit of its own, but pruning '{title}' repeats train from epoch {schedule.epoch} on; "
                    "leave the fit out, or use rewind: none",
                )
        if rounds and budgeted:
            mistakes.add(
                "budgets",
                f"pruning '{title}' trains again after each of its rounds, so that one budget means nothing; leave the "
                "budgets or that pruning out",
            )
        if back and schedule.epoch >= train.epochs:
            mistakes.add(
                "prunings",
                f"'{title}' goes back to epoch {schedule.epoch}, but training has only {train.epochs}; give "
                "schedule.epoch less than train.epochs",
            )


def _check_claims(
    claims: Sequence[Claim],
    prunings: Sequence[Pruning],
    sparsities: Sequence[float],
    recoveries: Sequence[Recovery],
    mistakes: Mistakes,
) -> None:
    """Notes claims that name what the study does not have, or that ask the same again."""
    dense, untrained = RESERVED["prunings"], RESERVED["recoveries"]
    asked: dict[tuple, int] = {}
    for number, claim in enumerate(claims):
        where, at = f"claims.{number}", claim.at
        titles = [dense, *(one.called() for one in prunings)]
        if at.pruning not in titles:
            said = f"{shown(at.pruning)} is no pruning of this study; {nearest(at.pruning, titles)}"
            mistakes.add(f"{where}.at.pruning", said)
        elif at.sparsity not in (there := (0.0,) if at.pruning == dense else sparsities):
            known = f"known of {at.pruning}: {', '.join(f'{one:g}' for one in there) or 'none'}"
            mistakes.add(f"{where}.at.sparsity", f"{at.sparsity:g} is no sparsity of this study; {known}")
        names = [one.called() for one in recoveries if one.losses or at.pruning != dense]
        for key in ("first", "second"):
            name = getattr(claim, key)
            if name == untrained and at.pruning == dense:
                said = "the dense networks without recovery are what the others are measured against; name two others"
                mistakes.add(f"{where}.{key}", said)
            elif name not in names:
                mistakes.add(f"{where}.{key}", f"{shown(name)} is no recovery of this study; {nearest(name, names)}")
        if claim.first == claim.second:
            mistakes.add(f"{where}.second", f"{shown(claim.second)} is compared with itself; name another recovery")
        same = (claim.measure, at, frozenset((claim.first, claim.second)))
        if asked.setdefault(same, number) != number:
            mistakes.add(where, f"asks the same as claims.{asked[same]}; leave one of them out")
