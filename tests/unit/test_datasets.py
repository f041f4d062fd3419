"""Rows from JSONL, and mistakes named by file and line."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.datasets import read_jsonl, write_jsonl

FULL = {
    "instruction": "Add two numbers — with “quotes”.",
    "input": "1 2\n",
    "output": "def f(a, b):\n    return a + b\n",
    "task_id": "add/1",
    "is_correct": False,
    "metadata": {"difficulty": 3, "tests": ["assert f(1, 2) == 3"], "nested": {"a": None}},
}
SHORT = {"instruction": "a", "output": "b"}
LINE = json.dumps(SHORT).encode()
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- reading -------------------------------------------------------------------------------------


def test_rows_are_read_as_written(tmp_path):
    path = tmp_path / "new" / "folder" / "rows.jsonl"
    rows = [FULL, {**FULL, "task_id": "add/2", "is_correct": True}]
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows
    assert path.read_bytes().count(b"\n") == 2


row = st.fixed_dictionaries(
    {
        "instruction": texts,
        "input": texts,
        "output": texts,
        "task_id": texts,
        "is_correct": st.booleans(),
        "metadata": st.dictionaries(texts, st.none() | st.integers() | texts, max_size=2),
    }
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(rows=st.lists(row, min_size=1, max_size=4))
def test_any_rows_survive(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows


def test_missing_fields_have_defaults(tmp_path):
    path = write(tmp_path / "rows.jsonl", b"\n" + LINE)
    defaults = {"input": "", "is_correct": True, "metadata": {}, "task_id": "line-2"}
    assert read_jsonl(path) == [{**SHORT, **defaults}]


def test_rows_share_no_metadata(tmp_path):
    """What is noted on one row must not appear on the others."""
    first, second = read_jsonl(write(tmp_path / "rows.jsonl", LINE + b"\n" + LINE))
    first["metadata"]["difficulty"] = 1
    assert second["metadata"] == {}
    assert read_jsonl(tmp_path / "rows.jsonl")[0]["metadata"] == {}


def test_unknown_fields_are_left_out(tmp_path):
    path = write(tmp_path / "rows.jsonl", json.dumps({**FULL, "extra": 1}).encode())
    assert read_jsonl(path) == [FULL]


@pytest.mark.parametrize(
    "content",
    [
        LINE + b"\n" + LINE + b"\n",
        LINE + b"\n" + LINE,
        LINE + b"\r\n" + LINE + b"\r\n",
        b"\xef\xbb\xbf" + LINE + b"\n" + LINE,
        b"\xef\xbb\xbf\r\n\r\n" + LINE + b"\n  \t\n\n" + LINE + b"\n\n",
    ],
    ids=["plain", "no last newline", "CRLF", "byte-order mark", "blank lines"],
)
def test_files_from_any_editor(content, tmp_path):
    rows = read_jsonl(write(tmp_path / "rows.jsonl", content))
    assert [(r["instruction"], r["output"]) for r in rows] == [("a", "b")] * 2


def test_unicode_line_separators_do_not_split_a_row(tmp_path):
    rows = [{**FULL, "output": "a\u2028b\u2029c\x85d\x0be"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


# --- mistakes ------------------------------------------------------------------------------------


def changed(**fields) -> bytes:
    return json.dumps({**FULL, **fields}).encode()


MALFORMED = {
    "not JSON": (b"{oops", "not valid JSON"),
    "cut off": (changed()[:-9], "not valid JSON"),
    "two objects": (LINE + LINE, "not valid JSON"),
    "deeply nested": (b"[" * 100_000, "not valid JSON"),
    "a number too long": (LINE[:-1] + b', "metadata": {"n": ' + b"1" * 5000 + b"}}", "not valid"),
    "a second byte-order mark": (b"\xef\xbb\xbf" + LINE, "JSON"),
    "Latin-1": ('{"instruction": "é"}'.encode("latin-1"), "not UTF-8 at byte 17"),
    "UTF-16": (LINE.decode().encode("utf-16"), "not UTF-8 at byte 0"),
    "a lone surrogate": (b'{"instruction": "\\ud83d", "output": "b"}', "instruction|UTF-8"),
    "a list": (b"[1]", "JSON object, this is list"),
    "a string": (b'"row"', "JSON object, this is str"),
    "null": (b"null", "JSON object, this is NoneType"),
    "no instruction": (b'{"output": "b"}', "'instruction' is missing"),
    "no output": (b'{"instruction": "a"}', "'output' is missing"),
    "instruction is a number": (changed(instruction=3), "'instruction' should be str, it is int"),
    "output is null": (changed(output=None), "'output' should be str, it is NoneType"),
    "input is null": (changed(input=None), "'input' should be str, it is NoneType"),
    "task_id is a number": (changed(task_id=7), "'task_id' should be str, it is int"),
    "is_correct is 1": (changed(is_correct=1), "'is_correct' should be bool, it is int"),
    "is_correct is text": (changed(is_correct="true"), "'is_correct' should be bool, it is str"),
    "metadata is a list": (changed(metadata=[]), "'metadata' should be dict, it is list"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_line_is_named(name, tmp_path):
    line, message = MALFORMED[name]
    path = write(tmp_path / "rows.jsonl", LINE + b"\n\n" + line + b"\n" + LINE)
    with pytest.raises(UserError, match=message) as caught:
        read_jsonl(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_named(content, tmp_path):
    path = write(tmp_path / "rows.jsonl", content)
    with pytest.raises(UserError, match="no rows") as caught:
        read_jsonl(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "missing.jsonl"):
        with pytest.raises(UserError, match="cannot be read") as caught:
            read_jsonl(path)
        assert str(path) in str(caught.value)


# --- writing -------------------------------------------------------------------------------------


def test_a_failure_midway_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [FULL])
    with pytest.raises(TypeError):
        write_jsonl(path, [FULL, {**FULL, "metadata": {"set": {1}}}])
    assert read_jsonl(path) == [FULL]
    write_jsonl(path, [FULL, FULL])
    assert read_jsonl(path) == [FULL, FULL]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_first_write_that_fails_leaves_nothing_to_be_read(tmp_path):
    with pytest.raises(TypeError):
        write_jsonl(tmp_path / "rows.jsonl", [FULL, {**FULL, "metadata": {"set": {1}}}])
    assert not list(tmp_path.glob("*.jsonl"))
