"""The long table: every value comes back as it was written, and what is no row of it is refused."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.registry import UserError
from pipeline.table import (
    COLUMNS,
    NUMBERS,
    WHOLE,
    grouped,
    measured,
    read_long,
    read_rows,
    select,
    write_long,
    write_rows,
)

# Names as people give them to classes: "NA", "nan", quotes, commas, line breaks inside.
names = st.text(string.ascii_letters + string.digits + " ,;\"'\n\t/äΣ|-", min_size=1, max_size=12)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
cells = st.fixed_dictionaries(
    {
        name: numbers if name in NUMBERS else st.none() | st.integers(0, 2**40) if name in WHOLE else st.none() | names
        for name in COLUMNS
    }
)


@given(rows=st.lists(cells, max_size=6))
def test_what_was_written_is_read_back_to_the_last_bit(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    write_long(path, rows)
    assert read_long(path) == rows


@pytest.mark.parametrize("name", ["NA", "nan", "None", "null", "1", "01", "1e3", "TRUE", " padded ", "a,b", 'say "x"'])
def test_names_of_classes_stay_names(tmp_path, name):
    write_long(tmp_path / "rows.csv", [measured("class", "fpr", 0.25, **{"class": name})])
    (row,) = read_long(tmp_path / "rows.csv")
    assert row["class"] == name and row["value"] == 0.25 and row["seed"] is None


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_value_that_does_not_exist_is_an_empty_place(tmp_path, value):
    row = measured("bias", "cev", value, low=value)
    assert row["value"] is None and row["low"] is None
    write_long(tmp_path / "rows.csv", [row])
    (read,) = read_rows(tmp_path / "rows.csv")
    assert read["value"] == read["low"] == ""


def test_a_column_that_the_table_has_not_is_a_fault():
    with pytest.raises(TypeError, match="no column sede"):
        measured("bias", "cev", 1.0, sede=3)


@pytest.mark.parametrize(
    "content,line",
    [
        (",".join(COLUMNS) + "\n" + ",".join("x" for _ in COLUMNS) + "\n", 2),
        ("measure,value\ncev,1\n", 2),
        (",".join(COLUMNS) + "\n" + "," * (len(COLUMNS) - 1) + "\n" + "a,b\n", 3),
    ],
)
def test_a_file_of_another_kind_is_named_with_its_line(tmp_path, content, line):
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(UserError, match=f"rows.csv: line {line} is no row of the long table"):
        read_long(tmp_path / "rows.csv")


def test_columns_of_other_tables_follow_the_rows(tmp_path):
    write_rows(tmp_path / "some.csv", [{"a": 1, "b": 2}, {"c": "x", "a": 3}])
    assert (tmp_path / "some.csv").read_text().splitlines() == ["a,b,c", "1,2,", "3,,x"]
    write_rows(tmp_path / "none.csv", [])
    assert read_rows(tmp_path / "none.csv") == []


few = st.fixed_dictionaries({"kind": st.sampled_from("ab"), "seed": st.sampled_from([None, 0, 1])})


@given(st.lists(few, max_size=8), few)
def test_select_is_a_filter_that_keeps_the_order(rows, wanted):
    found = select(rows, **wanted)
    assert found == [row for row in rows if row["kind"] == wanted["kind"] and row["seed"] == wanted["seed"]]
    assert select(rows) == rows


@given(st.lists(few, max_size=8))
def test_groups_hold_every_row_once_in_order(rows):
    groups = grouped(rows, "kind", "seed")
    assert [row for group in groups.values() for row in group] == sorted(
        rows, key=lambda row: list(groups).index((row["kind"], row["seed"]))
    )
    assert all({(row["kind"], row["seed"]) for row in group} == {key} for key, group in groups.items())
    firsts = [next(i for i, row in enumerate(rows) if (row["kind"], row["seed"]) == key) for key in groups]
    assert firsts == sorted(firsts)
