"""Folders of results that somebody else prepared: nothing outside of them is read as truth, written or deleted."""

import io
import json
import os
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_stage import Leaf, Sum, context

from pipeline import garbage, plan_notes, publication
from pipeline.__main__ import main
from pipeline.executors import walk
from pipeline.files import inside, read_json
from pipeline.progress import Display
from pipeline.registry import UserError
from pipeline.stage import Context
from pipeline.store import Store

ROOT = Path(__file__).parents[1]
NAMES = ["../outside", "/etc/hostname", "a\0b", "\ud800", "", ".", "..", "link/outside", "x/../../outside"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_one_line(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="lies outside of") as error:
        inside(folder, name, named_by=folder / "names.json")
    assert "\n" not in str(error.value)


def test_names_below_are_fine(tmp_path):
    for name in ("a", "a/b", "a..b", "...", "a b/ü.png"):
        assert inside(tmp_path, name, named_by=tmp_path) == tmp_path / name


@pytest.fixture(autouse=True, scope="module")
def _nothing_foreign():
    """Another file of tests may have registered measures in this process, and then nothing is noted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_notes, "FOREIGN", frozenset())
        yield


def test_json_that_is_nested_too_deeply(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 60_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "deep.json")


# ---------------------------------------------------------------------------------------------- work and store


def test_links_in_unfinished_work_are_not_followed(store, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    work = store.folder(Leaf(1)).with_suffix(".work")
    work.mkdir(parents=True)
    (work / ".begun-from.json").write_text("{}")
    (work / "value").symlink_to(victim)
    store.execute(Leaf(1), context(store))
    assert victim.read_text() == "mine"
    assert (store.folder(Leaf(1)) / "value").read_text() == "1" and not (store.folder(Leaf(1)) / "value").is_symlink()


def test_a_link_in_the_place_of_work_is_removed_and_not_what_it_leads_to(store, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "notes").write_text("mine")
    work = store.folder(Leaf(1)).with_suffix(".work")
    work.parent.mkdir(parents=True)
    work.symlink_to(victim)
    store.execute(Leaf(1), context(store))
    assert [path.name for path in victim.iterdir()] == ["notes"]


def test_a_link_is_no_file_of_a_result(store, tmp_path):
    store.execute(Leaf(1), context(store))
    value = store.folder(Leaf(1)) / "value"
    (tmp_path / "elsewhere").write_bytes(value.read_bytes())
    value.unlink()
    value.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="does not match its checksum"):
        Store(store.root).open(Leaf(1))


# ---------------------------------------------------------------------------------------------- gc


def names(rows):
    return {row.key for row in rows}


def test_gc_keeps_what_is_named_and_what_a_report_rests_on(store):
    kept, rested, gone = Sum((Leaf(1),)), Sum((Leaf(2),)), Sum((Leaf(3),))
    for stage in (Leaf(1), kept, Leaf(2), rested, Leaf(3), gone):
        store.execute(stage, context(store))
    rows = garbage.unnamed(store, [kept], [rested.key])
    assert names(rows) == {gone.key, Leaf(3).key}
    for row in rows:
        garbage.delete(store, row)
    assert store.exists(kept) and store.exists(Leaf(2)) and not store.exists(gone) and not store.exists(Leaf(3))
    assert not list(store.root.rglob("*.old"))


def test_gc_touches_nothing_behind_a_link_or_of_another_name(store, tmp_path):
    store.execute(Leaf(1), context(store))
    victim = tmp_path / "victim" / ("0" * 20)
    victim.mkdir(parents=True)
    (victim / "important").write_text("mine")
    (store.root / "store" / "photos").symlink_to(victim.parent)
    (store.root / "store" / "sum").symlink_to(victim.parent)
    (store.root / "store" / "leaf" / ("1" * 20)).symlink_to(victim)
    (store.root / "store" / "leaf" / "my notes").write_text("mine")
    (store.root / "store" / "own" / ("2" * 20)).mkdir(parents=True)
    assert names(garbage.unnamed(store, [], [])) == {Leaf(1).key}


def test_gc_waits_for_nobody_who_computes(store, capsys):
    store.execute(Leaf(1), context(store))
    with store.lock(store.computing, shared=True):
        assert (
            main(["gc", "--results", str(store.root), "--config", str(ROOT / "configs" / "smoke.yaml"), "--yes"]) == 2
        )
    assert "being computed" in capsys.readouterr().err and store.exists(Leaf(1))


@pytest.mark.parametrize("listing", ["[", '{"key": "../x"}', "[" * 60_000])
def test_gc_deletes_nothing_where_a_report_does_not_say_what_it_rests_on(store, capsys, listing):
    store.execute(Leaf(1), context(store))
    (store.root / "reports" / "mine").mkdir(parents=True)
    (store.root / "reports" / "mine" / "report.json").write_text(listing)
    assert main(["gc", "--results", str(store.root), "--config", str(ROOT / "configs" / "smoke.yaml"), "--yes"]) == 2
    error = capsys.readouterr().err
    assert "does not say what its report rests on" in error and len(error.splitlines()) == 1 and store.exists(Leaf(1))


# ---------------------------------------------------------------------------------------------- publication


@pytest.fixture
def report(store):
    store.execute(Leaf(1), context(store))
    return Leaf(1)


@pytest.mark.parametrize("name", [*NAMES, "figures", "x" * 300])
def test_a_listing_deletes_nothing_that_is_not_a_reports(store, report, tmp_path, name):
    published = store.root / "reports" / "study"
    (published / "figures").mkdir(parents=True)
    (published / "figures" / "mine.png").write_text("mine")
    (store.root / "reports" / "outside").write_text("mine")
    (published / "link").symlink_to(store.root / "reports")
    listing = {"key": "", "contents": "", "files": [name, "stale.csv"]}
    (published / "report.json").write_text(json.dumps(listing))
    (published / "stale.csv").write_text("of an earlier report")
    said = []
    publication.publish(store, report, "study", said.append)
    assert (published / "value").read_text() == "1" and not (published / "stale.csv").exists()
    assert (published / "figures" / "mine.png").exists() and (store.root / "reports" / "outside").exists()
    assert all(line.startswith("warning: ") and "\n" not in line for line in said) and len(said) == 1
    said.clear()
    publication.publish(store, report, "study", said.append)
    assert said == [], "the next listing is ours again"


def test_what_is_aside_and_not_ours_stays(store, report):
    published = store.root / "reports" / "study"
    published.mkdir(parents=True)
    (published / ".notes.aside").write_text("mine")
    (published / ".value.123.aside").write_text("of a writer that was killed")
    publication.publish(store, report, "study", print)
    assert sorted(path.name for path in published.iterdir()) == [".notes.aside", "report.json", "runs", "value"]


@pytest.mark.parametrize(
    "summary",
    [
        "[" * 60_000,
        "[]",
        '{"table": 3}',
        '{"sentences": [1], "table": {"header": [[]], "rows": [[1]], "page_only": []}}',
    ],
)
def test_a_summary_of_another_shape_is_one_line(tmp_path, summary):
    (tmp_path / "summary.json").write_text(summary)
    with pytest.raises(UserError, match="no report to show") as error:
        publication.show(tmp_path, Console(file=io.StringIO()), as_json=False)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------- notes of plans


CONFIG = ROOT / "configs" / "smoke.yaml"


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """A note of the small study, as `run` writes it."""
    from pipeline import config
    from pipeline.plan import plan
    from pipeline.stage import in_order

    results = tmp_path_factory.mktemp("noted")
    path = plan_notes.place(results, CONFIG, ())
    settings = config.load(CONFIG)
    plan_notes.note(Store(results), path, settings, in_order([plan(settings, results / "data").report]))
    return path


def recall(path):
    return plan_notes.recall(path, CONFIG, (), path.parent / "data")


def test_a_note_is_believed_only_whole_and_under_its_own_name(noted, tmp_path):
    assert recall(noted).study == "smoke" and recall(noted).report.kind == "report"
    content = noted.read_bytes()
    copy = tmp_path / noted.name
    for place in range(0, len(content), 37):
        changed = bytearray(content)
        changed[place] ^= 1
        copy.write_bytes(changed)
        found = recall(copy)
        assert found is None or found == recall(noted), place
    other = tmp_path / f"{'0' * 20}.json"
    other.write_bytes(content)
    assert recall(other) is None, "another configuration's plan"


@pytest.mark.parametrize("text", ["", "[" * 60_000, "{}", "[1]", '{"content": {}, "sha256": 1}'])
def test_a_note_of_another_shape_is_none(tmp_path, text):
    path = tmp_path / f"{'0' * 20}.json"
    path.write_text(text)
    assert recall(path) is None


def test_a_folder_in_the_place_of_a_note_costs_nothing(tmp_path):
    results = tmp_path / "results"
    command = [sys.executable, "-m", "pipeline", "train", "--config", str(CONFIG), "--results", str(results)]
    settings = ["workers=1", "train.epochs=1", "data.examples=60", "seeds=1"]
    plan_notes.place(results, CONFIG, settings).mkdir(parents=True)
    done = subprocess.run([*command, *settings], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_notes_behind_a_link_are_not_written(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "plans").symlink_to(tmp_path / "victim")
    plan_notes.note(Store(tmp_path / "results"), plan_notes.place(tmp_path / "results", CONFIG, ()), *smoke(tmp_path))
    assert not list((tmp_path / "victim").iterdir())


def smoke(root):
    from pipeline import config
    from pipeline.plan import plan
    from pipeline.stage import in_order

    settings = config.load(CONFIG)
    return settings, in_order([plan(settings, root).report])


def test_an_interpolation_or_an_edit_is_another_note_or_none(tmp_path):
    config = tmp_path / "study.yaml"
    config.write_text(CONFIG.read_text())
    first = plan_notes.place(tmp_path, config, ())
    config.write_text(CONFIG.read_text().replace("seeds: 2", "seeds: 3"))
    assert first != plan_notes.place(tmp_path, config, ()) != plan_notes.place(tmp_path, config, ("seeds=2",))
    assert plan_notes.place(tmp_path, config, ("seeds=${oc.env:SEEDS}",)) is None
    assert plan_notes.place(tmp_path, tmp_path / "nowhere.yaml", ()) is None


def test_changed_images_are_not_taken_for_those_that_were_planned(tmp_path):
    import numpy as np
    from PIL import Image

    def image(name, seed):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)).save(path)

    for seed in range(24):
        image(f"{'ab'[seed % 2]}/{seed}.png", seed)
    overrides = ["data={name: image_folder, path: %s, size: 8, validation: 0.3}" % (tmp_path / "images"), "workers=1"]
    arguments = ["--config", str(CONFIG), "--results", str(tmp_path / "results")]
    assert main(["train", *arguments, *overrides, "train.epochs=1"]) == 0
    noted = plan_notes.place(tmp_path / "results", CONFIG, [*overrides, "train.epochs=1"])
    recalled = lambda: plan_notes.recall(noted, CONFIG, overrides, tmp_path / "results" / "data")  # noqa: E731
    assert recalled() is not None
    image("a/0.png", 99)
    os.utime(tmp_path / "images" / "a" / "0.png", ns=(1, 1))
    assert recalled() is None


# ---------------------------------------------------------------------------------------------- the walk


def test_a_pool_that_breaks_when_it_is_given_work_is_one_line():
    def broken(stage) -> Future:
        raise BrokenProcessPool

    with pytest.raises(UserError, match=r"a worker process was killed .*workers=1"):
        walk([Leaf(1)], broken, at_once=1, display=Display(Console(file=io.StringIO()), 1))


def test_context_has_defaults(store):
    Context(store, store.root).say("to nobody")


def test_one_network_given_twice_is_refused(tmp_path):
    """It would count as two, and the floor's interval would be narrow for nothing."""
    from pipeline import audit

    labels = np.arange(60) % 3
    logits = [np.eye(3)[labels] + np.random.default_rng(seed).normal(size=(60, 3)) for seed in range(4)]
    given = {"labels": labels, "resamples": 100}
    for more in (
        {"reference": logits[0], "candidates": logits[1], "reference_trials": [logits[2], logits[2]]},
        {"reference": logits[0], "candidates": logits[1], "reference_trials": [logits[0]]},
        {"reference": logits[0], "candidates": [logits[1], logits[1]]},
        {"reference": [logits[0], logits[0]], "candidates": [logits[1], logits[2]]},
    ):
        with pytest.raises(UserError, match="says the same as .* once"):
            audit(**more, **given)
    for number in (-1, 10**30):
        with pytest.raises(UserError, match="minimum_errors"):
            audit(reference=logits[0], candidates=logits[1], minimum_errors=number, **given)


@pytest.mark.parametrize("name", ["²", "٠", "1"])
def test_only_plain_digits_number_a_class(name):
    from pipeline.data.split import _class_number

    assert _class_number(name, ("a", "b")) == (1 if name == "1" else None)


def test_a_pipe_is_no_csv(tmp_path):
    import os

    from pipeline.table import filled_rows

    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="no regular file"):
        filled_rows(tmp_path / "pipe.csv", "file,site")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\0", "\x1b[2J"])
def test_names_of_groups_can_be_held_by_tables(name):
    from pipeline.groups import Column

    with pytest.raises(UserError, match="no name of a group"):
        Column(np.array([0, 1]), ("a", name))
