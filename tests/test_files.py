"""Files: written whole or not at all, names that stay inside, links that are not followed, words for a full disk."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files import (
    ASIDE,
    describe_os_error,
    inside,
    remove,
    remove_debris,
    sha256_of,
    write_atomically,
    written_aside,
)
from pipeline.registry import UserError


@given(content=st.text() | st.binary())
def test_written_and_read(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "file"
    write_atomically(path, content)
    expected = content.encode() if isinstance(content, str) else content
    assert path.read_bytes() == expected and sha256_of(path) == hashlib.sha256(expected).hexdigest()
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("before", [None, "old"])
def test_where_writing_fails_nothing_is_left_of_it(tmp_path, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_text(before)
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("half")
        assert not path.exists() or path.read_text() == before, "the new content has no name yet"
        raise RuntimeError
    assert [each.name for each in tmp_path.iterdir()] == (["file"] if before else [])
    assert before is None or path.read_text() == before


def test_a_planted_link_is_not_written_through(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("mine")
    (tmp_path / f".file.{os.getpid()}{ASIDE}").symlink_to(victim)
    write_atomically(path, "new")
    assert victim.read_text() == "mine" and path.read_text() == "new" and not path.is_symlink()


def test_debris_of_killed_writers_goes_and_all_else_stays(tmp_path):
    (tmp_path / "below").mkdir()
    for name in (f".a.1{ASIDE}", f".a.22{ASIDE}", f".[b].3{ASIDE}"):
        (tmp_path / name).write_text("half")
    kept = {"a", f"mine{ASIDE}", ".hidden", f".other{ASIDE}", f".b.3{ASIDE}", f"below/.a.1{ASIDE}"}
    for name in kept:
        (tmp_path / name).write_text("whole")
    remove_debris(tmp_path / "a")
    remove_debris(tmp_path / "[b]")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_removing_takes_a_link_and_not_what_it_leads_to(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("mine")
    (tmp_path / "link").symlink_to(folder)
    remove(tmp_path / "link")
    assert (folder / "file").exists() and not (tmp_path / "link").is_symlink()
    remove(folder)
    remove(folder)
    assert not list(tmp_path.iterdir())


# Names that were read from disk

parts = st.sampled_from(["a", "b", "..", ".", "", "/", "c.txt", "~"])


@given(name=st.lists(parts, min_size=1, max_size=5).map("/".join))
def test_a_name_stays_inside_or_is_refused(name):
    folder = Path("/somewhere/results")
    try:
        path = inside(folder, name, named_by=folder / "list.json")
    except UserError as error:
        assert "list.json" in str(error) and "outside" in str(error)
        leads_out = os.path.isabs(name) or ".." in name.split("/")
        assert leads_out or os.path.normpath(name) == "."
    else:
        assert os.path.normpath(path).startswith("/somewhere/results/")


def test_a_folder_that_is_a_link_leads_out_and_a_last_part_does_not(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "results"
    outside.mkdir()
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    with pytest.raises(UserError, match="lies outside"):
        inside(folder, "link/file", named_by=folder / "list.json")
    assert inside(folder, "link", named_by=folder / "list.json") == folder / "link", "it is the link that is replaced"


# Words


@pytest.mark.parametrize(
    "number,remedy",
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EACCES, "choose a folder that you may write to"),
        (errno.EROFS, "choose a folder that can be written to"),
        (errno.ENOTDIR, "a file is in the way"),
        (errno.EIO, "mend this and run again"),
    ],
)
def test_trouble_with_the_disk_is_one_line_with_the_remedy(number, remedy):
    said = describe_os_error(OSError(number, os.strerror(number), "/data/file"), Path("/root-of-it"))
    assert said.startswith(f"/data/file: {os.strerror(number)}; {remedy}") and "\n" not in said


def test_trouble_without_a_file_names_the_results():
    assert describe_os_error(OSError("odd"), Path("/results")).startswith("/results: odd; ")
    assert describe_os_error(OSError(), Path("/results")).startswith("/results: OSError; ")
