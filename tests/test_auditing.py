"""The verb audit: files of every kind in, text, JSON and one page out, and one line for everything that is wrong."""

import argparse
import json
import os
import re
import stat
import subprocess
import sys

import numpy as np
import pytest
from conftest import made_up_logits, save, write

from pipeline import auditing, bias
from pipeline.registry import UserError

NAMES = ("cat", "dog", "<script>alert(1)</script>")
LABELS = np.random.default_rng(0).integers(0, 3, 300)


def logits(seed, wrong=0.3):
    return made_up_logits(LABELS, seed, wrong)


def table(folder, name, scores, groups=None):
    """A CSV with class names."""
    rows = [[NAMES[a], NAMES[b]] for a, b in zip(LABELS, scores.argmax(1), strict=True)]
    head = "label,prediction"
    if groups is not None:
        head += ",group"
        rows = [[*row, group] for row, group in zip(rows, groups, strict=True)]
    return write(folder, name, "\n".join([head, *(",".join(row) for row in rows)]) + "\n")


def run(*words):
    parser = argparse.ArgumentParser()
    auditing.add_arguments(parser)
    return auditing.main(parser.parse_args([*map(str, words), "--resamples", "100"]))


def result_of(capsys, *words):
    assert run(*words, "--json", "-") == 0
    return json.loads(capsys.readouterr().out)  # nothing else may be on the standard output


@pytest.fixture
def files(tmp_path):
    dense, pruned = logits(1), logits(2, 0.4)
    return {
        "dense": save(tmp_path, "dense.npz", labels=LABELS, logits=dense),
        "pruned": save(tmp_path, "pruned.npz", labels=LABELS, logits=pruned),
        "second": save(tmp_path, "second.npz", labels=LABELS, logits=logits(3, 0.4)),
        "other": save(tmp_path, "other.npz", labels=LABELS, logits=logits(4)),
    }


def test_json_has_the_promised_keys_and_values(files, capsys):
    found = result_of(
        capsys,
        "--reference",
        files["dense"],
        "--candidate",
        files["pruned"],
        files["second"],
        "--reference-trials",
        files["other"],
    )
    assert {"classes", "classes_used", "cev", "sde", "cev_interval", "sde_interval"} <= set(found)
    dense = bias.rates(LABELS, logits(1))
    trials = [bias.rates(LABELS, logits(seed, 0.4)) for seed in (2, 3)]
    assert found["classes"] == found["classes_used"] == 3
    assert found["cev"] == pytest.approx(bias.cev(dense, trials).value)
    assert found["published"]["cev"] == pytest.approx(bias.cev(dense, trials, average="rates").value)
    assert found["published"]["sde"] == pytest.approx(bias.sde(dense, trials, average="rates").value)
    assert [trial["file"] for trial in found["trials"]] == [files["pruned"], files["second"]]
    assert found["trials"][0]["accuracy"] == pytest.approx((logits(2, 0.4).argmax(1) == LABELS).mean())
    assert set(found["per_class"][0]) >= {
        "class", "support", "fpr_reference", "fnr_reference", "fpr", "fnr", "d_fpr", "d_fnr", "significant",
    }  # fmt: skip
    needs_groups = {name for name in bias.MEASURES if bias.MEASURES[name].needs_groups}
    assert set(found["measures"]) == set(bias.MEASURES) - needs_groups == set(bias.MEASURES) - set(found["left_out"])
    assert found["floor"]["networks"] == 2 and found["floor"]["cev"]["pairs"] == 2


def test_every_kind_of_file_gives_the_same(files, tmp_path, capsys):
    dense, pruned = logits(1), logits(2, 0.4)
    expected = result_of(capsys, "--reference", files["dense"], "--candidate", files["pruned"])
    folders = []
    for name, scores in (("one", dense), ("two", pruned)):
        folder = tmp_path / name
        folder.mkdir()
        save(folder, "predictions.npz", labels=LABELS, logits=scores, ids=np.arange(len(LABELS)))
        write(folder, "classes.json", json.dumps(NAMES))
        folders.append(folder)
    confusions = []
    for name, scores in (("c1.npz", dense), ("c2.npz", pruned)):
        confusion = np.zeros((3, 3), int)
        np.add.at(confusion, (LABELS, scores.argmax(1)), 1)
        confusions.append(save(tmp_path, name, confusion=confusion))
    kinds = {
        "csv": (table(tmp_path, "a.csv", dense), table(tmp_path, "b.csv", pruned)),
        "folder": folders,
        "folder and csv": (folders[0], table(tmp_path, "b2.csv", pruned)),
        "confusion": confusions,
        "predictions": (
            save(tmp_path, "p1.npz", labels=LABELS, predictions=dense.argmax(1)),
            save(tmp_path, "p2.npz", labels=LABELS, predictions=pruned.argmax(1)),
        ),
    }
    for kind, (reference, candidate) in kinds.items():
        found = result_of(capsys, "--reference", reference, "--candidate", candidate)
        assert found["cev"] == pytest.approx(expected["cev"]) and found["sde"] == pytest.approx(expected["sde"]), kind
    assert {
        row["class"] for row in result_of(capsys, "--reference", folders[0], "--candidate", folders[1])["per_class"]
    } == set(NAMES)


def test_groups_from_a_column_and_from_a_file(files, tmp_path, capsys):
    groups = np.random.default_rng(9).choice(["north", "south"], len(LABELS))
    column = result_of(
        capsys,
        "--reference",
        table(tmp_path, "a.csv", logits(1), groups),
        "--candidate",
        table(tmp_path, "b.csv", logits(2, 0.4), groups),
    )["groups"]["group"]["per_group"]
    listed = write(tmp_path, "g.csv", "group\n" + "\n".join(groups) + "\n")
    packed = save(tmp_path, "g.npz", groups=groups)
    for path in (listed, packed):
        found = result_of(capsys, "--reference", files["dense"], "--candidate", files["pruned"], "--groups", path)
        rows = found["groups"]["group"]["per_group"]
        assert [row["group"] for row in rows] == ["north", "south"]
        right = logits(2, 0.4).argmax(1) == LABELS
        for row, other in zip(rows, column, strict=True):
            assert row["accuracy"] == pytest.approx(right[groups == row["group"]].mean())
            assert row["cev"] == pytest.approx(other["cev"])


def test_terminal_says_it_in_words(files, capsys):
    assert run("--reference", files["dense"], "--candidate", files["pruned"]) == 0
    text = capsys.readouterr().out
    assert "CEV" in text and "Worst classes" in text and "3 of 3 classes" in text and "of 100 examples" in text


def test_a_candidate_equal_to_the_reference(files, capsys):
    found = result_of(capsys, "--reference", files["dense"], "--candidate", files["dense"])
    assert found["cev"] == found["sde"] == 0 and found["cev_interval"] == [0, 0] and found["sde_interval"] == [0, 0]
    assert not any(row["significant"] for row in found["per_class"])


def test_outputs_replace_a_file_and_leave_links_and_pipes_what_they_are(files, tmp_path):
    both = "--reference", files["dense"], "--candidate", files["pruned"]
    kept, link, pipe = tmp_path / "kept.json", tmp_path / "link.json", tmp_path / "pipe.json"
    kept.write_text("old")
    link.symlink_to(kept)
    assert run(*both, "--json", link) == 0
    assert link.is_symlink() and json.loads(kept.read_text())["classes"] == 3
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # else writing would wait for somebody to read
    try:
        assert run(*both, "--json", pipe) == 0
        assert os.read(reader, 1) == b"{" and stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)
    assert list(tmp_path.glob(".*")) == []


def test_page_stands_alone_and_escapes_names(tmp_path):
    page = tmp_path / "page.html"
    reference, candidate = table(tmp_path, "a.csv", logits(1)), table(tmp_path, "b.csv", logits(2, 0.4))
    assert run("--reference", reference, "--candidate", candidate, "--html", page) == 0
    text = page.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in text and "&lt;script&gt;alert(1)" in text
    assert text.count('<circle class="c') == 3 and "<ellipse" in text and "stroke-dasharray" in text
    assert not re.search(r'(?:src|href|url)\s*[=(]\s*["\']?\s*(?:https?:)?//', text)


def test_trials_are_counted_and_classes_named_for_what_they_are(files, capsys):
    assert run("--reference", files["dense"], "--candidate", files["pruned"]) == 0
    one = capsys.readouterr().out
    assert "3 of 3 classes, 300 examples, 1 trial\n" in one
    assert re.search(r"\d (fewer|more) of 100 examples right", one)
    assert "95 % interval for the value without sampling noise: CEV" in one
    assert run("--reference", files["dense"], "--candidate", files["pruned"], files["second"]) == 0
    assert "3 of 3 classes in every trial, 300 examples, 2 trials\n" in capsys.readouterr().out
    references = [
        bias.Predictions(LABELS, np.where(LABELS == 0, 0, logits(1).argmax(1))),
        bias.Predictions.from_logits(LABELS, logits(1)),
    ]
    candidates = [bias.Predictions.from_logits(LABELS, logits(seed, 0.4)) for seed in (2, 3)]
    result = bias.audit(references=references, candidates=candidates, resamples=100)
    text = "2 to 3 of 3 classes by trial, 2 of 3 classes in every trial"
    assert auditing.classes_used(result) == text and text in auditing.page(result, "dense")


def test_help_states_each_default_once(capsys):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    auditing.add_arguments(parser)
    assert parser.format_help().count("2000") == 1


def test_long_group_names_of_digits(files, tmp_path, capsys):
    groups = ["9" * 5000 if i % 2 else "7" for i in range(len(LABELS))]
    listed = write(tmp_path, "g.csv", "group\n" + "\n".join(groups) + "\n")
    found = result_of(capsys, "--reference", files["dense"], "--candidate", files["pruned"], "--groups", listed)
    assert [row["group"] for row in found["groups"]["group"]["per_group"]] == ["7", "9" * 5000]


BAD = {
    "no such file": lambda d: "missing.npz",
    "299 examples, but": lambda d: save(d, "x.npz", labels=LABELS[:-1], predictions=LABELS[:-1]),
    "labels differ from": lambda d: save(d, "x.npz", labels=np.roll(LABELS, 1), predictions=LABELS),
    "is missing from the labels": lambda d: save(d, "x.npz", labels=LABELS % 2, predictions=LABELS),
    "is not square": lambda d: save(d, "x.npz", confusion=np.ones((2, 3), int)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_that_names_the_file(message, files, tmp_path):
    path = BAD[message](tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        run("--reference", files["dense"], "--candidate", path)
    line = str(raised.value)
    assert "\n" not in line and path in line


def test_bad_groups_and_outputs(files, tmp_path):
    both = "--reference", files["dense"], "--candidate", files["pruned"]
    for name, text, message in (
        ("a.csv", "group\nx\n", "1 groups for 300 examples"),
        ("b.csv", "domain\nx\n", "1 groups in column 'domain' for 300 examples"),
        ("d.csv", "file\nx\n", "no column 'group'"),
    ):
        with pytest.raises(UserError, match=message):
            run(*both, "--groups", write(tmp_path, name, text))
    with pytest.raises(UserError, match="cannot be written"):
        run(*both, "--html", tmp_path / "missing" / "page.html")
    assert list(tmp_path.glob(".*")) == [] and not (tmp_path / "missing").exists()
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written: Is a directory"):
        run(*both, "--json", tmp_path)
    one = save(tmp_path, "one.npz", labels=np.zeros(5, int), predictions=np.zeros(5, int))
    with pytest.raises(UserError, match="one.npz: only one class"):
        run("--reference", one, "--candidate", one)


def test_neither_module_imports_what_it_does_not_need():
    code = (
        "import sys, pipeline.bias, pipeline.auditing, pipeline.predictions; "
        "print([name for name in ('torch', 'pandas', 'matplotlib', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line(files, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "pipeline", "audit", "--resamples", "100"]
    both = ["--reference", files["dense"], "--candidate", files["pruned"], "--json", "-"]
    done = subprocess.run([*command, *both], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert json.loads(done.stdout)["classes"] == 3
    assert not re.search(r"\|\s+torch$", done.stderr, re.MULTILINE)
    wrong = ["--reference", files["dense"], "--candidate", str(tmp_path / "missing.npz")]
    done = subprocess.run([sys.executable, "-m", "pipeline", "audit", *wrong], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "missing.npz: no such file" in done.stderr
