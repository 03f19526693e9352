"""Hundreds of bad configurations: each is refused at once, in one line for each mistake, under the path that it has.

Made out of the schema: every option of every section and of every registered class, with everything that its type does
not take. Then what no schema tells: files that are none, YAML that means something else, sizes no machine has.
"""

import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest
import yaml

from pipeline import config, pruning, recovery
from pipeline.data import DATASETS, Augmentation
from pipeline.distillation import LOSSES
from pipeline.registry import UserError, options_of
from pipeline.schema import Recovery, Study
from pipeline.statistics import Claim
from pipeline.training import Fit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
GOOD = {
    "study": "bad",
    "seeds": 2,
    "data": {"name": "synthetic", "validation": 0.2},
    "network": "resnet8",
    "train": {"epochs": 6},
    "recover": {"epochs": 4},
    "sparsities": [0.8],
    "prunings": ["magnitude"],
    "recoveries": ["none", "kd"],
}
SECONDS = 10
# What each kind of value is not, whatever its bounds.
NUMBERS = ["many", True, None, [1], {"a": 1}, math.nan, math.inf, -math.inf, "", "0x", 10**30, -(10**30)]
WRONG_VALUES = {
    int: [*NUMBERS, 0.5],
    float: NUMBERS,
    bool: ["maybe", "TRUE ", 1, 0.0, None, [True], {}],
    str: [True, 0.5, None, ["a"], {"a": 1}],
}


def spoilt(kind):
    """Values that an option of this type does not take."""
    marks = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if any(hasattr(mark, "read") for mark in marks):
        return []
    if get_origin(plain) in (Union, UnionType):
        (inner,) = [part for part in get_args(plain) if part is not NoneType]
        return [value for value in spoilt(inner) if value is not None]
    if get_origin(plain) is Literal:
        choices = get_args(plain)
        upper = choices[0].upper() if isinstance(choices[0], str) else 7
        return ["nonsense", "", None, [choices[0]], {"a": 1}, True, 7.5, upper]
    if get_origin(plain) is tuple:
        return [{"a": 1}, True, "x", [[0.5]], [None]]
    if plain not in WRONG_VALUES:
        return ["text", 3, None, [1], True]
    values = list(WRONG_VALUES[plain])
    for limit in (limit for mark in marks for limit in getattr(mark, "metadata", ())):
        for bound, step in (("ge", -1), ("le", 1), ("gt", 0), ("lt", 0)):
            if hasattr(limit, bound):
                values.append(getattr(limit, bound) + step)
    return values


def sections():
    """(path, class, what stands beside the option there) of everything that has options."""
    yield ("train",), Fit, {}
    yield ("recover",), Fit, {}
    yield ("train", "augmentation"), Augmentation, {}
    for name in DATASETS:
        yield ("data",), DATASETS[name], {"name": name}
    for name in pruning.METHODS:
        yield ("prunings", 0), pruning.METHODS[name], {"name": name}
    for name in pruning.SCHEDULES:
        yield ("prunings", 0, "schedule"), pruning.SCHEDULES[name], {"name": name}
    for name in LOSSES:
        yield ("recoveries", 0, "losses", 0), LOSSES[name], {"name": name}
    yield ("recoveries", 0), Recovery, {"losses": "kd"}
    yield ("recoveries", 0, "fit"), Fit, {}
    yield ("recoveries", 0, "teachers", 0, "train"), Fit, {}
    for name in recovery.STARTS:
        yield ("recoveries", 0, "start"), recovery.STARTS[name], {"name": name}
    place = {"pruning": "magnitude", "sparsity": 0.8}
    yield ("claims", 0), Claim, {"measure": "cev", "first": "kd", "second": "none", "at": place}
    yield (), Study, {}


def embedded(path, options):
    """The good configuration with these options at the path."""
    value = options
    for number in range(len(path) - 1, 0, -1):
        name = path[number]
        value = [value] if name == 0 else {name: value}
        if isinstance(value, dict) and path[0] == "recoveries" and number == 2 and name != "losses":
            value["losses"] = "kd"
        if isinstance(value, dict) and path[0] == "prunings" and number == 2:
            value["name"] = "magnitude"
    return {**GOOD, path[0]: value} if path else {**GOOD, **options}


def refusal(tmp_path, content):
    """What is said of a configuration that went through a file, and the seconds that it took; None: it was taken."""
    file = tmp_path / "study.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    begun = time.monotonic()
    try:
        config.load(file)
        said = None
    except UserError as error:
        said = str(error)
    return said, time.monotonic() - begun


# Not a mistake: changes to a section may be none.
TAKEN = [("recoveries.0.fit", None)]


def cases():
    """(path of the mistake, configuration, what stands there)"""
    for path, cls, beside in sections():
        where = ".".join(map(str, path))
        for option in options_of(cls):
            full = f"{where}.{option.name}".lstrip(".")
            for value in spoilt(option.type):
                if (full, value) not in TAKEN:
                    yield full, embedded(path, {**beside, option.name: value}), value
            misspelt = f"{option.name}x"
            yield f"{where}.{misspelt}".lstrip("."), embedded(path, {**beside, misspelt: 1}), option.name


def test_every_option_refuses_what_it_does_not_take(tmp_path):
    wrong, count, slowest = [], 0, 0.0
    for full, content, value in cases():
        said, seconds = refusal(tmp_path, content)
        count, slowest = count + 1, max(slowest, seconds)
        lines = (said or "").splitlines()
        expected = 2 if full == "recoveries" and value == {"a": 1} else 1  # losses are missing, too
        if len(lines) != expected or not all(re.match(rf"{re.escape(full)}(\.\w+)*: .", line) for line in lines):
            wrong.append(f"{full}={value!r}: {said}")
        elif full.endswith("x") and f"did you mean '{value}'?" not in said:
            wrong.append(f"{full}: not told of {value}: {said}")
    print(f"{count} bad configurations, the slowest took {slowest:.2f} s")
    assert not wrong, "\n".join(wrong)
    assert count >= 300 and slowest < SECONDS


SMOKE = (ROOT / "configs" / "smoke.yaml").read_text()


@pytest.mark.parametrize(
    "text,message",
    [
        ("", r"^study: missing; .*\ndata: missing; .*\nnetwork: missing; .*$"),
        ("study\n", "^study: null is refused"),
        ("- 1\n", "holds no mapping"),
        ("a: b: c\n", "not YAML"),
        ("study: [unclosed\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("a: \0\n", "not YAML"),
        ("a: *nobody\n", "not YAML"),
        (f"{SMOKE}seeds: 3\n", r"^seeds: stands there twice, in lines 3 and 22; keep one of them$"),
        (SMOKE.replace("  epochs: 6\n", "  epochs: 6\n  epochs: 7\n"), r"^train.epochs: stands there twice, in lines"),
        (SMOKE.replace("seeds: 2", "seeds: 1:30"), "line 3: seeds: 1:30 is a number of base 60 to YAML"),
        (SMOKE.replace("seeds: 2", "seeds: 010"), "line 3: seeds: 010 is an octal number to YAML"),
        (SMOKE.replace("seeds: 2", "seeds: yes"), "^seeds: true is refused; give a whole number from 1 to 256$"),
        (SMOKE.replace("seeds: 2", "on: 2"), r"line 3: 'on' is no text to YAML; put it in quotes"),
        (SMOKE.replace("network: resnet8", "network: off"), "^network: false is no network"),
        (SMOKE.replace("seeds: 2", "seeds: !!python/name:os.system 2"), "the tag .* is refused"),
        (SMOKE.replace("seeds: 2", "seeds: !!str 2"), "the tag .* is refused"),
        (SMOKE.replace("epochs: 6", "epochs: ???"), r"^train.epochs: \?\?\? stands for a value"),
        (SMOKE.replace("epochs: 6", "epochs: ${nowhere}"), "nowhere"),
        (SMOKE.replace("epochs: 6", "epochs: ${oc.env:NO_SUCH_VARIABLE}"), "NO_SUCH_VARIABLE"),
        (SMOKE.replace("epochs: 6", "epochs: ${"), "."),
        (SMOKE.replace("epochs: 6", f"epochs: {'9' * 5000}"), "."),
        (SMOKE.replace("seeds: 2", f"seeds: 0x{'f' * 5000}"), "^seeds: a number of thousands of digits is refused"),
        (f"a: {'[' * 5000}{']' * 5000}\n", "line 1: nested deeper than 32 levels"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(400)), "nested deeper than 32 levels"),
        ("a: &a [*a]\n", "."),
        (
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)),
            ".",
        ),
        (SMOKE + "#" * 300_000, "more than 256 KiB"),
        (SMOKE.replace("smoke", "x" * 200), "^study: .* becomes a folder"),
        (SMOKE.replace("smoke", "../x"), "^study: '../x' becomes a folder"),
    ],
    ids=lambda text: text[:30].replace("\0", "0"),
)
def test_yaml_that_is_none_or_means_something_else(tmp_path, text, message):
    said, seconds = refusal(tmp_path, text)
    assert re.search(message, said or "") and seconds < SECONDS
    assert "\n" not in said or text in ("", "study\n")


@pytest.mark.parametrize(
    "override,message",
    [
        ("train.milestones=[a]", r"^train.milestones.0: 'a' is refused; give a number, above 0 and below 1$"),
        ("train.epochs=???", r"^train.epochs: \?\?\? stands for a value"),
        (
            "train.epochs=100000000000000000000",
            r"^train.epochs: 1\d{20} is refused; give a whole number from 1 to",
        ),
        ("train.epochs=true", "^train.epochs: true is refused"),
        ("train.epochs=", "^train.epochs: null is refused"),
        ("train.epochs=[", "^train.epochs: '\\[' is no value"),
        ("train..epochs=1", "^train.: unknown option"),
        (".=1", "^.*unknown"),
        ("=1", "has the form key=value"),
        ("seeds=1:30", "^seeds: 1:30 is a number of base 60"),
        ("seeds=0x10000000000", "^seeds: 1099511627776 is refused"),
        ("resamples=4294967295", "^resamples: 4294967295 is refused; give a whole number from 100 to 10000000$"),
        ("data.examples=100000000000", "^data.examples: 100000000000 is refused"),
        ("data.size=1000000", "^data.size: 1000000 is refused; give a whole number from 4 to 4096$"),
        ("network=resnet60000002x1", "^network: .*depth is 60000002; give 6n [+] 2 up to 1202"),
        ("network=resnet8x100000", "^network: .*width is 100000; give 1 to 1000"),
        ("network=ResNet8", "^network: 'ResNet8' is no network; .*did you mean"),
        ("recoveries.5.losses=kd", "^recoveries.5.losses: recoveries is a list of 2"),
        ("recoveries.1.losses=kd", "^recoveries.1.losses: recoveries.1 is 'kd' in the file, which has no options"),
        ("data.keep={class9: 2}", "^data.keep.class9: 2 is refused; give a number, above 0 and at most 1$"),
        (
            "recoveries=[{losses: [{name: kd}, {name: at, temperature: 2}]}]",
            "^recoveries.0.losses.1.temperature: ",
        ),
        ("prunings=[magnitude,{name: lamp, scope: layers}]", "^prunings.1.scope: 'layers' is unknown; .*'layer'"),
        (
            "recoveries=[{losses: kd, start: from_scratch}]",
            "^recoveries.0.start: 'from_scratch' is no .*'scratch'",
        ),
        ("recoveries=[{losses: kd, from_scratch: true}]", "^recoveries.0.from_scratch: unknown option"),
        (
            "recoveries=[{losses: kd, start: {name: rewound, epoch: 6}}]",
            "^recoveries.0.start.epoch: 6 leaves nothing",
        ),
        (
            "recoveries=[{losses: kd, update: nothing}]",
            "^recoveries.0.update: 'nothing' is no update; known",
        ),
        ("recoveries=[{losses: kd, fit: {epochs: 0}}]", "^recoveries.0.fit.epochs: 0 is refused"),
        ("recoveries=[{losses: kd, teachers: {train: {momentum: 1}}}]", "^recoveries.0.teachers.train.momentum: 1 is"),
    ],
)
def test_overrides(tmp_path, override, message):
    begun = time.monotonic()
    with pytest.raises(UserError, match=message) as error:
        config.load(ROOT / "configs" / "smoke.yaml", [override])
    assert "\n" not in str(error.value) and time.monotonic() - begun < SECONDS


def test_all_mistakes_are_told_at_once(tmp_path):
    content = {
        **GOOD,
        "sedes": 3,
        "network": "resnet81",
        "data": {"name": "synthetic", "validation": 2, "exampels": 3},
        "train": {"epochs": 0, "milestones": ["a", 0.5], "augmentation": {"flop": 1}},
        "prunings": ["magnitud", {"name": "lamp", "schedule": {"name": "gradual", "end": 2}}],
        "recoveries": ["none", "kd", {"losses": [{"name": "kd", "temperature": True}, "att"], "fit": {"epochs": 1.5}}],
        "device": "gpu",
    }
    said, _ = refusal(tmp_path, content)
    assert sorted(line.split(": ")[0] for line in said.splitlines()) == sorted(
        [
            *("sedes", "network", "data.validation", "data.exampels", "train.epochs", "train.milestones.0"),
            *("train.augmentation.flop", "prunings.0", "prunings.1.schedule.end", "recoveries.2.losses.0.temperature"),
            *("recoveries.2.losses.1", "recoveries.2.fit.epochs", "device"),
        ]
    )


def test_all_overrides_are_told_at_once():
    with pytest.raises(UserError) as error:
        config.load(ROOT / "configs" / "smoke.yaml", ["workers", "seeds=1:30", "recoveries.7=kd", "train.epochs=3"])
    places = [line.split(":")[0] for line in str(error.value).splitlines()]
    assert places == ["'workers'", "seeds", "recoveries.7"]


def run(*arguments, **options):
    """The real command: its exit status, and the lines of its errors."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "pipeline", "run", *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)
    assert "Traceback" not in found.stderr and found.stderr.startswith("error: "), found.stderr
    return found.returncode, found.stderr.splitlines(), time.monotonic() - begun


def test_files_that_never_end_or_never_answer(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "large.yaml").write_text("".join(f"key{number}: value\n" for number in range(700_000)))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name, message in [
        ("pipe", "a pipe or device, no file"),
        ("zero", "a pipe or device, no file"),
        ("folder", "a folder, no file"),
        ("large", "more than 256 KiB"),
        ("bytes", "no text in UTF-8"),
    ]:
        status, lines, seconds = run("--config", str(tmp_path / f"{name}.yaml"), "--results", str(tmp_path / "results"))
        assert status == 2 and len(lines) == 1 and message in lines[0] and seconds < SECONDS, (name, lines, seconds)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--results", ""], "error: argument --results: empty; give a path"),
        (["--config", ""], "error: argument --config: empty; give a path"),
        (["network=resnet8x900"], "network: resnet8x900 takes .* GiB to train, and this machine has"),
        (["data.examples=90000000", "data.size=64"], "data: examples 90000000 of size 64 .* would take .* of memory"),
        (
            [
                "recoveries=[{losses: kd, cache_logits: true, fit: {epochs: 100000}}]",
                "data.classes=1000",
                "data.examples=20000",
            ],
            "cache_logits would take .* GB of disk",
        ),
    ],
)
def test_on_the_command_line(tmp_path, arguments, message):
    given = [] if "--results" in arguments else ["--results", str(tmp_path / "results")]
    status, lines, seconds = run("--config", str(ROOT / "configs" / "smoke.yaml"), *given, *arguments)
    assert status == 2 and re.search(message, lines[0]), lines
    assert seconds < 4 * SECONDS, "loading torch included"
    assert not (tmp_path / "results" / "store").exists()
