"""Texts, tables and their split."""

import pytest

from steepest.finetune import data
from steepest.runs.errors import UserError


@pytest.fixture(scope="module")
def library() -> data.Split:
    return data.load(None)


def test_standard_library_has_enough_entries(library):
    assert len(library.train) + len(library.test) > 1000
    assert library.kind == "search"


def test_no_module_and_no_text_is_in_both_parts(library):
    for field in ("group", "text", "target"):
        train, test = ({getattr(row, field).lower() for row in part} for part in (library.train, library.test))
        assert not train & test
    groups = [{row.group for row in part} for part in (library.train, library.test)]
    assert len(groups[1]) / len(groups[0] | groups[1]) == pytest.approx(1 / 3, abs=0.01)


def test_private_tests_are_left_out(library):
    groups = {row.group for row in library.train + library.test}
    assert not [g for g in groups if g.split(".")[0] in ("test", "idlelib", "lib2to3")]
    assert "pydoc_data.topics" in groups


def test_sources_are_parsed_and_never_run(tmp_path):
    docstring = '"""Open the door of the house.\n\n    Where f is a door that leads to the garden."""'
    (tmp_path / "trap.py").write_text(f"raise SystemExit\ndef f():\n    {docstring}")
    (tmp_path / "broken.py").write_text("def (")
    row = data.Row("Open the door of the house.", "Where is a door that leads to the garden.", "trap")
    assert data.standard_library(tmp_path) == [row]


@pytest.mark.parametrize(
    "text",
    [
        "f(x) -> y\n\nOne two three four five six seven eight nine.",
        "Too short.\n\nOne two three four five six seven eight nine.",
        "A first line that is long enough.\n\nShort rest.",
        "A first line without any rest at all.",
    ],
)
def test_poor_entries_are_left_out(text):
    assert data.as_row(text, "f", "m") is None


def test_subset_is_stable_and_ordered():
    rows = [data.Row(str(i), "", "") for i in range(50)]
    some = data.subset(rows, 10)
    assert some == data.subset(rows, 10)
    assert [int(r.text) for r in some] == sorted(int(r.text) for r in some)
    assert data.subset(rows, 100) == rows


def test_jsonl_and_tsv_say_the_same(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "positive": "y", "group": 1}\n\n{"text": "u", "positive": "v"}\n')
    (tmp_path / "a.tsv").write_text("text\tpositive\tgroup\nx\ty\t1\nu\tv\t\n")
    rows = [data.Row("x", "y", "1"), data.Row("u", "v", "v")]
    assert data.read_table(tmp_path / "a.jsonl") == ("search", rows)
    assert data.read_table(tmp_path / "a.tsv") == ("search", rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "cannot read '.txt'"),
        ("a.csv", None, "no such file"),
        ("a.csv", "", "no rows"),
        ("a.csv", "text,answer\nx,y\n", r"line 2: found the columns text, answer; expected `text,positive`"),
        ("a.csv", "text,label,positive\nx,y,z\n", "found the columns text, label, positive"),
        ("a.csv", "text,label\nx,y\n\nz,\n", "line 4: column 'label' is empty"),
        ("a.csv", "text,label\nx,y,z\n", "line 2: more cells"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": \n', "line 2: not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected an object"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y"}\n', r"line 2: column 'label' .*columns found: text"),
    ],
)
def test_bad_table_is_named_with_line_and_columns(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        data.load(str(tmp_path / name))
    assert name in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="UTF-8"):
        data.load(str(tmp_path / "a.csv"))


def test_too_few_groups():
    with pytest.raises(UserError, match="at least 3"):
        data.split("search", "here", [data.Row("a", "b", "g"), data.Row("c", "d", "h")])
