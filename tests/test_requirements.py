"""The gate: what a requirement may say, and when it is met, by measure, by verdict, in an audit and in a study."""

import argparse
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import SMOKE, made_up_logits, plan_of, save
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline import __main__ as command_line
from pipeline import auditing, publication, requirements
from pipeline.bias import MEASURES
from pipeline.registry import UserError
from pipeline.report.words import number
from pipeline.requirements import Gate, Outcome, Requirement, judge
from pipeline.table import measured, write_long

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
TRUE = {
    ">=": lambda value, bound: value >= bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    "<": lambda value, bound: value < bound,
}


def parse(text, **options):
    return Requirement.parse(text, MEASURES, **options)


def outcome(text, **measured):
    requirement = parse(text)
    return judge(requirement, {requirement.name: measured}).outcome


# What it may say


@pytest.mark.parametrize(
    "text,expected",
    [
        ("worst_recall>=0.8", ("worst_recall", ">=", 0.8)),
        (" worst_recall <= 8e-1 ", ("worst_recall", "<=", 0.8)),
        ("accuracy_change>-0.01", ("accuracy_change", ">", -0.01)),
        ("cev_over_control<1.5", ("cev_over_control", "<", 1.5)),
        ("cev_over_floor = no_worse", ("cev_over_floor", "=", "no_worse")),
    ],
)
def test_name_operator_and_value(text, expected):
    found = parse(text)
    assert (found.name, found.operator, found.value) == expected and found.text == "".join(text.split())


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "requirement '': has not the form NAME OP VALUE; give one such as worst_recall>=0.8"),
        ("worst_recall", "has not the form NAME OP VALUE"),
        (">=0.8", "has not the form NAME OP VALUE"),
        ("worst_recall>=", "has not the form NAME OP VALUE"),
        ("worst_recall!=0.8", "has not the form NAME OP VALUE"),
        ("0.8<=worst recall", "'0.8|form NAME OP VALUE"),
        ("worst_recal>=0.8", r"'worst_recal' is no measure; known: .*; did you mean 'worst_recall'\?"),
        ("cevs_over_floor<2", r"'cevs' is no measure; known: .*; did you mean 'cev'\?"),
        ("cev_over_flor<2", r"'flor' is no yardstick here; known: control, floor; did you mean 'floor'\?"),
        ("cev_over_=above", "'' is no yardstick here"),
        ("worst_recall_over_floor<2", "'worst_recall' has no yardstick; known: accuracy_change, .*cev, "),
        ("pie_over_control<2", "'pie' has no yardstick; known: "),
        ("worst_group_accuracy_change_over_floor>0", "'worst_group_accuracy_change' has no yardstick; known: "),
        ("worst_recall=0.8", "= goes with a verdict on a yardstick, .*give >=, <=, > or <"),
        ("worst_recall==0.8", "has not the form NAME OP VALUE"),
        ("worst_recall=>0.8", "= goes with a verdict on a yardstick"),
        ("cev_over_floor=no_wors", r"'no_wors' is no verdict; known: above, .*did you mean 'no_worse'\?"),
        ("cev_over_floor=1.5", "'1.5' is no verdict"),
        ("cev_over_floor<no_worse", "'no_worse' is no number; a verdict goes with =, as in cev_over_floor=no_worse"),
        ("worst_recall>=80%", "'80%' is no number"),
        ("worst_recall>=nan", "'nan' is no number"),
        ("worst_recall<inf", "'inf' is no number"),
        ("worst_recall>=>0.8", "'>0.8' is no number"),
    ],
)
def test_what_is_none_is_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_an_audit_has_no_control_and_all_mistakes_are_told():
    with pytest.raises(UserError, match="'control' is no yardstick here; known: floor$"):
        parse("cev_over_control<2", yardsticks=["floor"])
    with pytest.raises(UserError) as error:
        requirements.read(["a>1", "accuracy>0.9", "cev=1"], MEASURES)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "requirement 'a>1'",
        "requirement 'cev=1'",
    ]


@given(st.text(max_size=30))
def test_no_text_breaks_it(text):
    try:
        found = parse(text)
    except UserError as error:
        assert len(str(error).splitlines()) <= 1 + len(text.splitlines())
    else:
        assert found.name.split("_over_")[0] in MEASURES


# When it is met


@given(NUMBERS, NUMBERS, NUMBERS, st.sampled_from(sorted(TRUE)))
def test_a_bound_is_met_by_the_whole_interval_or_by_none_of_it(one, other, bound, operator):
    """Against the definition, over numbers of the interval: its ends, its middle, the bound where it lies inside."""
    low, high = min(one, other), max(one, other)
    inside = [low, high, low / 2 + high / 2, *([bound] if low <= bound <= high else [])]
    inside += [near for near in np.nextafter(bound, [-np.inf, np.inf]) if low <= near <= high]
    truths = {bool(TRUE[operator](value, bound)) for value in inside}
    expected = {(True,): "met", (False,): "not met"}.get(tuple(truths), "cannot tell") if low < high else "cannot tell"
    assert outcome(f"accuracy_change{operator}{bound!r}", value=low, low=low, high=high) == expected


@given(NUMBERS, st.sampled_from(sorted(TRUE)))
def test_a_value_alone_never_passes(value, operator):
    for ends in ({}, {"low": None, "high": None}, {"low": value, "high": None}, {"low": float("nan"), "high": value}):
        assert outcome(f"accuracy{operator}0", value=value, **ends) == "cannot tell"
    assert judge(parse("accuracy>0"), {}).reason == judge(parse("accuracy>0"), {"accuracy": None}).reason
    assert "without interval: one seed" in judge(parse("accuracy>0"), {"accuracy": {"note": "one seed"}}).reason


def yardstick(kind, margin, low, high):
    """Made up, after its definition, for a measure of which less is better."""
    one, least = (1, 1 / margin) if kind == "ratio" else (0, -margin)
    verdict = (
        "above" if low > one else "below" if high < one else "equivalent" if least <= low and high <= margin else ""
    )
    return {
        **{"kind": kind, "margin": margin, "value": low / 2 + high / 2, "low": low, "high": high, "seeds": 5},
        **{"verdict": verdict or "cannot tell", "no_worse": high <= margin, "note": ""},
    }


@given(st.sampled_from(["ratio", "difference"]), st.floats(1.05, 3), st.floats(0.01, 10), st.floats(0.01, 10))
def test_a_verdict_is_met_when_it_was_given(kind, margin, one, other):
    shift = 0 if kind == "ratio" else -5
    low, high = min(one, other) + shift, max(one, other) + shift
    assume(low < high)
    given = yardstick(kind, margin, low, high)
    for wanted in ("above", "below", "equivalent"):
        found = outcome(f"cev_over_floor={wanted}", **given)
        assert (found == "met") == (given["verdict"] == wanted)
        assert (found == "cannot tell") == (given["verdict"] == "cannot tell")
    worse = {True: "met", False: "not met" if low > margin else "cannot tell"}[given["no_worse"]]
    assert outcome("cev_over_floor=no_worse", **given) == worse
    # More is better: the same upside down.
    turned = (
        given | {"low": -high, "high": -low} if kind == "difference" else given | {"low": 1 / high, "high": 1 / low}
    )
    assert outcome("cev_over_floor=no_worse", **turned) == worse


@pytest.mark.parametrize(
    "fields",
    [
        None,
        {},
        {"verdict": "above", "no_worse": True},  # without an interval nobody could have said so
        {"low": 0.5, "high": 0.9, "verdict": "", "no_worse": None, "margin": 1.5, "kind": "ratio"},
        {"low": 0.5, "high": 0.9},
        {"low": "0.5", "high": [1]},
    ],
)
def test_a_yardstick_that_does_not_exist_passes_nothing(fields):
    for verdict in requirements.VERDICTS:
        assert judge(parse(f"cev_over_floor={verdict}"), {"cev_over_floor": fields}).outcome == "cannot tell"


def test_a_gate_passes_when_everything_is_met_and_shows_what_names_hold():
    met, other = (Outcome(parse("cev<2"), word, "1 (0.5 to 1.5)") for word in ("met", "cannot tell"))
    passed, failed = Gate((("a", met),)), Gate((("a", met), ("b\x1b[31m", other)))
    assert (passed.status, failed.status, passed.passed, failed.passed) == (0, 3, True, False)
    assert failed.to_json()["requirements"][1] == {
        **{"cell": "b\x1b[31m", "requirement": "cev<2", "outcome": "cannot tell", "reason": "1 (0.5 to 1.5)"},
    }
    said = io.StringIO()
    failed.tell(said)
    assert said.getvalue() == (
        "met:         a: cev<2: 1 (0.5 to 1.5)\ncannot tell: b\\x1b[31m: cev<2: 1 (0.5 to 1.5)\n"
    )


@pytest.mark.parametrize(
    "columns,expected",
    [
        ({"kind": (0.7, 0.8)}, "met"),
        ({"kind": (0.7, 0.8), "size": (0.5, 0.7)}, "cannot tell"),
        ({"kind": (0.2, 0.3), "size": (0.5, 0.7)}, "not met"),
        ({"kind": (0.7, 0.8), "size": (None, None)}, "cannot tell"),
    ],
)
def test_what_compares_groups_has_to_be_met_in_every_column(columns, expected):
    fields = {name: {"value": 0.75, "low": low, "high": high} for name, (low, high) in columns.items()}
    found = judge(parse("worst_group_accuracy>=0.6"), {"worst_group_accuracy": {"by_column": fields}})
    assert found.outcome == expected and all(f"{name}: 0.75" in found.reason for name in columns)


# In an audit


@pytest.fixture
def files(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, 300)
    return [
        *("--reference", save(tmp_path, "dense.npz", labels=labels, logits=made_up_logits(labels, 1))),
        *("--candidate", save(tmp_path, "pruned.npz", labels=labels, logits=made_up_logits(labels, 2, 0.4))),
        *("--resamples", "100"),
    ]


def audited(*words):
    parser = argparse.ArgumentParser()
    auditing.add_arguments(parser)
    return auditing.main(parser.parse_args([*map(str, words)]))


def requiring(*texts):
    return [word for text in texts for word in ("--require", text)]


def test_an_audit_passes_or_says_what_is_missing(files, tmp_path, capsys):
    assert audited(*files, "--json", tmp_path / "plain.json") == 0
    plain = json.loads((tmp_path / "plain.json").read_text())
    assert "gate" not in plain
    low, high = plain["measures"]["accuracy"]["interval"]
    assert 0 < low < high < 1 == plain["measures"]["worst_recall"]["interval"][1]  # noise alone lowers the worst one
    capsys.readouterr()
    easy, hard, between = (f"accuracy>={bound!r}" for bound in (low, high + 0.001, (low + high) / 2))
    assert audited(*files, *requiring(easy)) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith(f"met:         pruned.npz: {easy}: ") or f"pruned.npz: {easy}" in out
    assert audited(*files, *requiring(easy, hard, between, "cev_over_floor=no_worse"), "--json", "-") == 3
    said = capsys.readouterr()
    gate = json.loads(said.out)["gate"]
    assert gate["passed"] is False
    assert [one["outcome"] for one in gate["requirements"]] == ["met", "not met", "cannot tell", "cannot tell"]
    assert "--reference-trials" in gate["requirements"][3]["reason"]
    assert f"({number(low)} to {number(high)})" in gate["requirements"][0]["reason"]
    assert len(said.err.splitlines()) == 4 and said.err.count("cannot tell: ") == 2


def test_what_an_audit_left_out_cannot_be_told(files, tmp_path, capsys):
    labels = np.arange(30) % 3
    next_class = (labels + 1) % 3
    some = save(tmp_path, "some.npz", labels=labels, predictions=np.where(np.arange(30) < 9, next_class, labels))
    wrong = save(tmp_path, "all.npz", labels=labels, predictions=next_class)
    words = ["--reference", some, "--candidate", wrong, "--resamples", "100"]
    assert audited(*words, *requiring("calibration_error<0.5", "accuracy<=0.5"), "--json", "-") == 3
    gate = json.loads(capsys.readouterr().out)["gate"]
    assert [one["outcome"] for one in gate["requirements"]] == ["cannot tell"] * 2
    assert "without interval: " in gate["requirements"][0]["reason"] and "logits" in gate["requirements"][0]["reason"]
    # Every answer is wrong, and so in every resample; that is not to know that no answer can be right.
    assert gate["requirements"][1]["reason"] == (
        "0 without interval: no resample has another value, which says nothing of an endless test set"
    )


def test_groups_and_the_floor_of_an_audit_are_asked(files, tmp_path, capsys):
    """Every outcome against what the same audit shows."""
    labels = np.random.default_rng(0).integers(0, 3, 300)
    more = [save(tmp_path, f"{seed}.npz", labels=labels, logits=made_up_logits(labels, seed)) for seed in (5, 6, 7)]
    (tmp_path / "groups.csv").write_text("group\n" + "\n".join("ab"[row % 2] for row in range(300)) + "\n")
    words = [*files, "--reference-trials", *more, "--groups", tmp_path / "groups.csv", "--json", "-"]
    required = ["worst_group_accuracy>=0.1", "worst_group_accuracy>=0.99", "cev_over_floor=above", "churn_over_floor<9"]
    assert audited(*words, *requiring(*required)) == 3
    found = json.loads(capsys.readouterr().out)
    low, high = found["groups"]["group"]["measures"]["worst_group_accuracy"]["interval"]
    assert 0.1 < low < high == 1  # noise alone lowers the accuracy of the worst group
    outcomes = [one["outcome"] for one in found["gate"]["requirements"]]
    assert outcomes[:2] == ["met", "cannot tell"]
    assert (
        f"group: {number(found['groups']['group']['measures']['worst_group_accuracy']['value'])} ("
        in (found["gate"]["requirements"][0]["reason"])
    )
    verdict = found["measures"]["cev"]["over_floor"]["verdict"]
    assert outcomes[2] == {"above": "met", "cannot tell": "cannot tell"}.get(verdict, "not met")
    assert (outcomes[3] == "met") == (found["measures"]["churn"]["over_floor"]["high"] < 9)


def test_a_malformed_requirement_is_refused_before_any_file_is_read(capsys):
    words = ["--reference", "missing.npz", "--candidate", "missing.npz", "--require", "worst_recal>=0.8"]
    assert command_line.main(["audit", *words]) == 2
    assert capsys.readouterr().err.startswith("error: requirement 'worst_recal>=0.8': 'worst_recal' is no measure; ")


# In a study


CELLS = [("dense", 0.0, "none"), ("dense", 0.0, "kd"), ("magnitude", 0.8, "none"), ("magnitude", 0.8, "kd")]


@pytest.fixture
def published(store, tmp_path):
    """The folder of a published report, with made-up values: more of each in each further cell."""
    folder = publication.report_folder(store.root, "smoke")
    folder.mkdir(parents=True)
    lines, rows = [], []
    for step, (pruning, sparsity, recovery) in enumerate(CELLS):
        place = {"pruning": pruning, "sparsity_asked": sparsity, "recovery": recovery}
        over = {"cev": yardstick("ratio", 1.5, 0.4 * step, 0.4 * step + 0.2)}
        lines.append(place | {"over_floor": over if pruning != "dense" else None})
        value = 0.9 - 0.1 * step
        rows.append(measured("bias", "worst_recall", value, low=value - 0.02, high=value + 0.02, **place))
        rows.append(measured("bias", "worst_recall", 0.0, low=0.0, high=0.1, group="side", **place))
        rows.append(measured("bias", "worst_recall", 0.0, group="side=left", **place))
        for column, low in (("side", 0.3), ("kind", 0.4)):
            rows.append(measured("bias", "worst_group_accuracy", 0.5, low=low, high=0.6, group=column, **place))
        rows.append(measured("bias", "worst_recall", value, seed=0, **place))
    table = {"title": "", "caption": "", "header": ["pruning"], "rows": [["dense"]], "page_only": []}
    (folder / "summary.json").write_text(json.dumps({"lines": lines, "table": table, "sentences": []}))
    write_long(folder / "rows.csv", rows)
    key = plan_of(root=store.root / "data").report.key
    (folder / "report.json").write_text(json.dumps({"key": key, "contents": "", "files": []}))
    return folder


def shown(store, *words):
    return command_line.main(["show", "--config", str(SMOKE), "--results", str(store.root), *words])


def test_every_pruned_cell_has_to_pass(published, store, capsys):
    assert shown(store, *requiring("worst_recall>=0.5")) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "worst_recall" in line]
    assert [line.split(": ")[:2] for line in lines] == [
        ["met", "        magnitude 0.8 without recovery"],
        ["met", "        magnitude 0.8 + kd"],
    ]
    assert shown(store, *requiring("worst_recall>=0.65")) == 3
    assert "not met:     magnitude 0.8 + kd: worst_recall>=0.65: 0.6 (0.58 to 0.62)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "pattern,status,cells",
    [
        ("magnitude 0.8 without recovery", 0, 1),
        ("* without recovery", 0, 1),
        ("* + kd", 3, 2),
        ("dense*", 0, 1),
        ("*", 3, 3),
        ("magnitude 0.[8]*", 3, 2),
    ],
)
def test_cells_are_chosen_by_name(published, store, capsys, pattern, status, cells):
    assert shown(store, *requiring("worst_recall>=0.65"), "--cell", pattern, "--json") == status
    said = capsys.readouterr()
    gate = json.loads(said.out)["gate"]
    assert len(gate["requirements"]) == cells == len(said.err.splitlines()) and gate["passed"] == (status == 0)


def test_yardsticks_and_other_measures_of_a_cell(published, store, capsys):
    required = ["cev_over_floor=no_worse", "cev_over_floor<1", "cev_over_control<2", "churn<1"]
    required += ["worst_group_accuracy>0.2", "worst_group_accuracy>0.35"]
    assert shown(store, *requiring(*required), "--cell", "magnitude 0.8 + kd", "--json") == 3
    gate = json.loads(capsys.readouterr().out)["gate"]
    assert [(one["outcome"], one["reason"]) for one in gate["requirements"]] == [
        ("met", "1.3 (1.2 to 1.4): no worse (margin 1.5)"),
        ("not met", "1.3 (1.2 to 1.4)"),
        ("cannot tell", "was not measured"),
        ("cannot tell", "was not measured"),
        ("met", "side: 0.5 (0.3 to 0.6); kind: 0.5 (0.4 to 0.6)"),
        ("cannot tell", "side: 0.5 (0.3 to 0.6) lies on both sides of 0.35; kind: 0.5 (0.4 to 0.6)"),
    ]


def test_what_is_refused_of_a_study(published, store, capsys):
    def refused(*words):
        assert shown(store, *words) == 2
        said = capsys.readouterr()
        assert said.out == "" and len(said.err.splitlines()) == 1 and said.err.startswith("error: ")
        return said.err

    required = requiring("worst_recall>=0.5")
    assert "did you mean 'magnitude 0.8 + kd'?" in refused(*required, "--cell", "magnitude 0.9 + kd")
    assert "'no such' is no cell; known: dense + kd, dense without recovery" in refused(*required, "--cell", "no such")
    assert "--cell: says what --require is about" in refused("--cell", "*")
    assert "'worst_recal' is no measure" in refused(*requiring("worst_recal>=0.5"))
    assert "made with other settings" in refused(*required, "resamples=300")
    summary = json.loads((published / "summary.json").read_text())
    for lines in (3, [3], [{}], [{**summary["lines"][2], "sparsity_asked": "many"}]):
        (published / "summary.json").write_text(json.dumps({**summary, "lines": lines}))
        assert "summary.json: names no cells" in refused(*required)
    (published / "summary.json").write_text(json.dumps(summary))
    (published / "rows.csv").write_text("a\n1\n")
    assert "no row of the long table" in refused(*required)
    (published / "rows.csv").unlink()
    assert "rows.csv" in refused(*required)
    (published / "summary.json").unlink()
    assert "there is none yet" in refused(*required)


def test_a_reader_that_goes_away_lets_nothing_pass(published, store):
    command = [sys.executable, "-m", "pipeline", "show", "--config", str(SMOKE), "--results", str(store.root)]
    words = [*requiring("worst_recall>=0.5"), "--json"]
    done = subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    done.stdout.close()
    assert done.wait(120) == 3
    done.stderr.close()
