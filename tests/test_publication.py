"""Publication: whole files in place of old ones, what a person keeps stays, and a listing leads nowhere else."""

import io
import json

import pytest
from conftest import Written, execute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline import publication
from pipeline.registry import UserError

EVENTS = "tensorboard/dense/none/seed0/events.out.tfevents.0"
FIRST = Written((("index.html", "first"), ("figures/bias.png", "png"), ("old.csv", "a"), (EVENTS, "events")))
SECOND = Written((("index.html", "second"), ("figures/bias.png", "png"), (EVENTS, "more events")))


@pytest.fixture
def publish(store):
    """Publishes a report as study "tiny"; gives its folder and the lines that were said."""

    def run(report):
        execute(store, report)
        said = []
        return publication.publish(store, report, "tiny", said.append), said

    return run


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_of_the_report_and_events_of_the_dashboard(publish, store):
    folder, said = publish(FIRST)
    assert folder == store.root / "reports" / "tiny" and not said
    found = files(folder)
    listing = json.loads(found.pop("report.json"))
    assert found == {"index.html": "first", "figures/bias.png": "png", "old.csv": "a"}
    assert listing["key"] == FIRST.key and listing["files"] == sorted(found)
    events = files(store.root / "tensorboard" / "tiny")
    assert events["dense/none/seed0/events.out.tfevents.0"] == "events"


def test_a_later_report_takes_its_place_and_what_a_person_keeps_stays(publish, store):
    folder, _ = publish(FIRST)
    (folder / "notes.txt").write_text("mine")
    (folder / "figures" / "mine.png").write_text("mine")
    publish(SECOND)
    found = files(folder)
    assert found.pop("report.json") and "old.csv" not in found
    assert found == {
        "index.html": "second",
        "figures/bias.png": "png",
        "notes.txt": "mine",
        "figures/mine.png": "mine",
    }


def test_events_of_other_runs_in_the_same_folder_make_way(publish, store):
    publish(FIRST)
    run = store.root / "tensorboard" / "tiny" / "dense" / "none" / "seed0"
    (run / "events.out.tfevents.1").write_text("of an earlier version")
    (run / "notes.txt").write_text("mine")
    publish(SECOND)
    assert {path.name: path.read_text() for path in run.iterdir()} == {
        "events.out.tfevents.0": "more events",
        "notes.txt": "mine",
    }


def test_again_writes_nothing_and_what_was_damaged_is_mended(publish, store):
    folder, _ = publish(FIRST)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    publish(FIRST)
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()} == before
    (folder / "index.html").write_text("fi_st")
    (folder / "figures" / "bias.png").unlink()
    publish(FIRST)
    assert files(folder)["index.html"] == "first" and files(folder)["figures/bias.png"] == "png"


# Listings that somebody wrote

outside_names = st.sampled_from(
    ["../../precious", "/{root}/precious", "..", "figures/../../../precious", "link/precious", "", "."]
)


@given(names=st.lists(outside_names, min_size=1, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_a_listing_deletes_nothing_outside_of_its_folder(publish, store, names):
    folder, _ = publish(FIRST)
    outside = store.root / "outside"
    outside.mkdir(exist_ok=True)
    for place in (store.root / "precious", store.root.parent / "precious", outside / "precious"):
        place.write_text("mine")
    if not (folder / "link").exists():
        (folder / "link").symlink_to(outside)
    names = [name.replace("/{root}", str(store.root)) for name in names]
    listing = {"key": "x", "contents": "x", "files": [*names, "old.csv"]}
    (folder / "report.json").write_text(json.dumps(listing))
    _, said = publish(SECOND)
    for place in (store.root / "precious", store.root.parent / "precious", outside / "precious"):
        assert place.read_text() == "mine"
    assert not (folder / "old.csv").exists(), "what is inside and of an earlier report goes"
    assert len(said) >= len({name for name in names if name not in ("", ".")})
    assert all(line.startswith("warning: ") and "report.json" in line for line in said)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"files": 3}',
        '{"files": [[]]}',
        '{"key": 1}',
        "[" * 100_000,
        "\udcff",
        '{"files": null}',
    ],
)
def test_a_listing_that_cannot_be_read_is_an_empty_one(publish, content):
    folder, _ = publish(FIRST)
    (folder / "report.json").write_bytes(content.encode(errors="surrogateescape"))
    assert publication.read_listing(folder)["contents"] == ""
    _, said = publish(FIRST)
    assert not said and json.loads((folder / "report.json").read_text())["key"] == FIRST.key


def test_a_file_of_the_report_that_is_a_link_is_replaced_and_not_written_through(publish, tmp_path):
    folder, _ = publish(FIRST)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder / "index.html").unlink()
    (folder / "index.html").symlink_to(victim)
    publish(SECOND)
    assert victim.read_text() == "mine" and (folder / "index.html").read_text() == "second"
    assert not (folder / "index.html").is_symlink()


def test_asides_of_a_killed_writer_are_removed(publish):
    folder, _ = publish(FIRST)
    (folder / ".index.html.1.aside").write_text("half")
    publish(SECOND)
    assert not list(folder.glob(".*aside"))


# Showing


def shown(folder, **options):
    text = io.StringIO()
    publication.show(folder, Console(file=text), **options)
    return text.getvalue()


@pytest.mark.parametrize(
    "content,message",
    [
        (None, "there is none yet"),
        ("{", "damaged, or of an earlier version"),
        ("{}", "damaged, or of an earlier version"),
        ('{"sentences": 3}', "damaged, or of an earlier version"),
        ("[1]", "damaged, or of an earlier version"),
    ],
)
def test_no_report_to_show(tmp_path, content, message):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        shown(tmp_path, as_json=False)
    assert "make it with the verb run" in str(error.value)
