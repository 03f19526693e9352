"""The verb gc: what a configuration or a published report names stays, and so does what is somebody's own."""

import fcntl
import shutil

import pytest
from conftest import SMOKE, Written, execute, plan_of

from pipeline import garbage
from pipeline.__main__ import main
from pipeline.stage import in_order

NAMED, OTHER = Written((("a", "named"),)), Written((("a", "other" * 100),))


def entries(store):
    return {path.relative_to(store.root / "store").as_posix() for path in (store.root / "store").glob("*/*")}


def test_what_a_target_needs_is_named_and_so_is_what_that_was_made_from(store):
    user = Written((("b", "user"),), (NAMED,))
    for stage in (NAMED, user, OTHER):
        execute(store, stage)
    (row,) = garbage.unnamed(store, [user])
    assert (row.kind, row.key, row.label) == ("written", OTHER.key, "written")
    assert row.entries == (store.folder(OTHER),)
    assert row.size == sum(path.stat().st_size for path in store.folder(OTHER).iterdir()) > 500
    assert garbage.unnamed(store, [user, OTHER]) == []


def test_the_largest_comes_first(store):
    small = Written((("a", ""),))
    for stage in (small, OTHER):
        execute(store, stage)
    assert [row.key for row in garbage.unnamed(store, [])] == [OTHER.key, small.key]


def test_what_lies_beside_a_result_goes_with_it_and_what_is_somebodys_own_stays(store):
    for stage in (NAMED, OTHER):
        execute(store, stage)
    folder = store.folder(OTHER).parent
    beside = [folder / f"{OTHER.key}{suffix}" for suffix in (".work", ".failed", ".old", ".damaged")]
    beside[0].mkdir()
    for path in (*beside[1:], folder / f"{NAMED.key}.failed"):
        path.write_text("text")
    own = [folder / name for name in ("notes.txt", OTHER.key[:10], f"{OTHER.key}.backup", f"{OTHER.key.upper()}x")]
    for path in own:
        path.write_text("mine")
    (row,) = garbage.unnamed(store, [NAMED])
    assert set(row.entries) == {store.folder(OTHER), *beside}
    garbage.delete(store, row)
    assert all(path.read_text() == "mine" for path in own)
    left = {path.name for path in folder.iterdir()} - {path.name for path in own}
    assert left == {NAMED.key, f"{NAMED.key}.failed"}


def test_unfinished_work_alone_is_listed_as_such(store):
    work = store.folder(OTHER).with_name(f"{OTHER.key}.work")
    work.mkdir(parents=True)
    (work / "checkpoint").write_bytes(bytes(1000))
    (row,) = garbage.unnamed(store, [])
    assert row.label == "unfinished" and row.size == 1000
    garbage.delete(store, row)
    assert not work.exists()


def test_a_link_is_not_followed(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(bytes(10_000))
    folder = store.folder(OTHER)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(outside)
    assert garbage.unnamed(store, []) == [], "a link is nothing of ours"
    assert (outside / "file").exists() and folder.is_symlink()


# On the command line


@pytest.fixture
def results(store):
    """Empty folders under every key that the small study names, one of another study's, and one that nothing names."""
    for overrides in ((), ("network=resnet14",)):
        for stage in in_order([plan_of(*overrides, root=store.root / "data").report]):
            store.folder(stage).mkdir(parents=True, exist_ok=True)
    execute(store, OTHER)
    return store.root


def listed(capsys):
    return capsys.readouterr().out


def test_a_configuration_names_its_results(results, store, capsys):
    before = entries(store)
    assert main(["gc", "--config", str(SMOKE), "--results", str(results)]) == 0
    said = listed(capsys)
    assert OTHER.key in said and "nothing was deleted; --yes deletes them" in said
    assert entries(store) == before
    named = {f"{stage.kind}/{stage.key}" for stage in in_order([plan_of(root=results / "data").report])}
    assert not [name for name in named if name in said]
    assert main(["gc", "--config", str(SMOKE), "--results", str(results), "--yes"]) == 0
    assert entries(store) == named
    assert main(["gc", "--config", str(SMOKE), "--results", str(results), "--yes"]) == 0
    assert "0 results" in listed(capsys).splitlines()[-1]


def test_a_published_report_names_its_results_too(results, store, capsys):
    published = results / "reports" / "larger" / "config.yaml"
    published.parent.mkdir(parents=True)
    published.write_text(SMOKE.read_text().replace("network: resnet8", "network: resnet14"))
    assert main(["gc", "--config", str(SMOKE), "--results", str(results), "--yes"]) == 0
    assert f"{OTHER.kind}/{OTHER.key}" not in entries(store)
    larger = in_order([plan_of("network=resnet14", root=results / "data").report])
    assert {f"{stage.kind}/{stage.key}" for stage in larger} <= entries(store)


def test_configurations_lie_in_configs_unless_others_are_given(results, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["gc", "--results", str(results), "--yes"]) == 2
    assert "everything would go" in capsys.readouterr().err and len(entries(store)) > 10
    (tmp_path / "configs").mkdir()
    shutil.copy(SMOKE, tmp_path / "configs")
    assert main(["gc", "--results", str(results)]) == 0
    assert "none of 1 configurations" in listed(capsys)


def test_a_configuration_that_says_nothing_known_stops_it(results, store, tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("study: x\nnetwork: [\n")
    before = entries(store)
    given = ["--config", str(SMOKE), str(tmp_path / "broken.yaml")]
    assert main(["gc", *given, "--results", str(results), "--yes"]) == 2
    assert "broken.yaml: what it names is not known" in capsys.readouterr().err and entries(store) == before


def test_nothing_is_deleted_while_a_study_is_being_computed(results, store, capsys):
    store.computing.parent.mkdir(exist_ok=True)
    before = entries(store)
    with store.computing.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as every run does while it computes
        assert main(["gc", "--config", str(SMOKE), "--results", str(results)]) == 0, "to look is allowed"
        assert main(["gc", "--config", str(SMOKE), "--results", str(results), "--yes"]) == 2
    assert "a study is being computed" in capsys.readouterr().err and entries(store) == before


def test_a_folder_without_a_store(tmp_path, capsys):
    assert main(["gc", "--results", str(tmp_path)]) == 2
    assert "holds no store" in capsys.readouterr().err
