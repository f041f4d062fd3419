"""Whatever bytes a JSONL file holds: rows, or one clear message; through both readers."""

import errno
import json
import os
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Row
from weighted_mtp.data import datasets
from weighted_mtp.data.datasets import MAX_DEPTH, first_row, read_jsonl, write_jsonl
from weighted_mtp.data.rows import convert as convert_rows
from weighted_mtp.data.rows.store import open_rows

Reader = Callable[[Path], Iterable[Row]]
LINE = b'{"instruction": "a", "output": "b"}'
FULL = {
    "instruction": "a",
    "input": "",
    "output": "b",
    "task_id": "t",
    "is_correct": True,
    "metadata": {"difficulty": 1},
}


@pytest.fixture(params=["read_jsonl", "open_rows"])
def read(request, tmp_path_factory) -> Iterator[Reader]:
    """Both ways to read rows. Whatever happens, the store leaves nothing half-made."""
    cache = tmp_path_factory.mktemp("cache")
    yield read_jsonl if request.param == "read_jsonl" else lambda path: list(open_rows(path, cache))
    assert not list(cache.rglob("*.partial*"))


def refused(read: Reader, path: Path) -> str:
    """The one line a person is shown."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 200
    return message.removeprefix(str(path))


def nested(levels: int) -> bytes:
    return LINE[:-1] + b', "metadata": {"x": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}}"


# --- lines ---------------------------------------------------------------------------------------

HALF = b'"\\ud800"'
MALFORMED = {
    "NUL bytes": (LINE[:9] + b"\0" * 50, "NUL bytes; the file is damaged"),
    "a NUL in a text": (LINE.replace(b"a", b"\0"), "NUL bytes"),
    "a lone surrogate": (LINE.replace(b'"a"', HALF), "'instruction' contains a lone surrogate"),
    "the other half": (LINE.replace(b'"b"', b'"x\\uDFFFx"'), "'output' contains a lone surrogate"),
    "half a pair in metadata": (
        LINE[:-1] + b', "metadata": {"a": ["' + HALF[1:] + b"]}}",
        "'metadata' contains a lone surrogate",
    ),
    "half a pair in a key": (
        LINE[:-1] + b', "metadata": {' + HALF + b": 1}}",
        "'metadata' contains a lone surrogate",
    ),
    "half a pair as difficulty": (
        LINE[:-1] + b', "metadata": {"difficulty": ' + HALF + b"}}",
        "'metadata' contains a lone surrogate",
    ),
    "a surrogate in UTF-8": (LINE.replace(b"a", b"\xed\xa0\x80"), "not UTF-8 at byte"),
    "a key twice": (LINE[:-1] + b', "output": "c"}', "the key 'output' is given twice"),
    "a key twice in metadata": (
        LINE[:-1] + b', "metadata": {"x": {"y": 1, "z": 2, "y": 1}}}',
        "the key 'y' is given twice",
    ),
    "too deep": (nested(MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH} levels"),
    "far too deep": (nested(50_000), "not valid JSON"),
    "cut off": (LINE[:20], "not valid JSON (Expecting property name"),
    "Latin-1": (LINE.replace(b"a", b"\xe9"), "not UTF-8 at byte"),
    "no object": (b"[]", "a row is a JSON object, this is list"),
    "no output": (b'{"instruction": "a"}', "'output' is missing"),
    "a number for text": (LINE.replace(b'"a"', b"1"), "'instruction' should be str, it is int"),
    "text for a flag": (LINE[:-1] + b', "is_correct": "no"}', "should be bool, it is str"),
    "old Macintosh line ends": (LINE + b"\r" + LINE, "not valid JSON (Extra data"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_line_is_named(name, read, tmp_path):
    line, expected = MALFORMED[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINE + b"\n\r\n" + line + b"\n" + LINE + b"\n{}\n")
    message = refused(read, path)
    assert message.startswith(", line 3: ")
    assert expected in message


def test_what_is_unusual_but_right(read, tmp_path):
    lines = [
        LINE.replace(b"a", b"\\u0000\\ud83d\\ude00"),  # NUL and an emoji, escaped
        LINE.replace(b"b", "\u2028 \\\\ud800 é".encode()),  # a backslash and letters
        nested(MAX_DEPTH),
        LINE[:-1] + b', "metadata": {"x": "' + b"[" * 500 + b'"}}',
        LINE[:-1] + b', "metadata": {"huge": 1e999, "long": ' + b"9" * 400 + b"}}",
        LINE,
        LINE,  # solutions of one problem may be equal
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows = list(read(path))
    assert rows[0]["instruction"] == "\0😀"
    assert rows[1]["output"] == "\u2028 \\ud800 é"
    assert rows[4]["metadata"] == {"huge": float("inf"), "long": int("9" * 400)}
    assert rows == read_jsonl(path)


def test_one_broken_line_in_many(read, tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [b'{"instruction": "question %d", "output": "answer"}' % i for i in range(100_000)]
    lines[76_543] = lines[76_543][:-1]
    path.write_bytes(b"\n".join(lines))
    assert refused(read, path).startswith(", line 76544: not valid JSON")


def test_solutions_of_one_problem_share_its_id(read, tmp_path):
    rows = [FULL, FULL, {**FULL, "is_correct": False}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert list(read(tmp_path / "rows.jsonl")) == rows


# --- sizes ---------------------------------------------------------------------------------------


def test_a_line_of_fifty_megabytes(read, tmp_path):
    row = {**FULL, "output": "0123456789" * 5_000_000}
    write_jsonl(tmp_path / "rows.jsonl", [FULL, row, FULL])
    rows = list(read(tmp_path / "rows.jsonl"))
    assert rows[1]["output"] == row["output"]
    assert rows[0] == rows[2] == FULL


@pytest.mark.parametrize("end", [b"\n", b""])
def test_the_longest_line(end, read, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_LINE", 1 << 20)
    monkeypatch.setattr(convert_rows, "MAX_LINE", 1 << 20)
    monkeypatch.setattr(convert_rows, "SPAN_BYTES", 4096)
    path = tmp_path / "rows.jsonl"
    longest = LINE + b" " * ((1 << 20) - len(LINE) - len(end)) + end
    path.write_bytes(LINE + b"\n" + longest)
    assert len(list(read(path))) == 2
    path.write_bytes(LINE + b"\n" + b" " + longest + LINE + b"\n{}\n")
    assert refused(read, path).startswith(", line 2: longer than 1 MiB")


def test_a_terabyte_without_a_line_end_stays_out_of_memory(read, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_LINE", 8 << 20)
    monkeypatch.setattr(convert_rows, "MAX_LINE", 8 << 20)
    monkeypatch.setattr(convert_rows, "SPAN_BYTES", 8 << 20)
    monkeypatch.setattr(convert_rows, "MUCH", 1 << 50)  # other processes' memory is not traced
    path = tmp_path / "rows.jsonl"
    path.touch()
    os.truncate(path, 1 << 40)  # all NUL, takes no room
    tracemalloc.start()
    try:
        assert refused(read, path).startswith(", line 1: longer than 8 MiB")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_a_file_without_rows(content, read, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert "no rows" in refused(read, path)


@pytest.mark.parametrize(
    ("magic", "expected"),
    [
        (b"\x1f\x8b\x08", "gunzip"),
        (b"PK\x03\x04", "zip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"PAR1", "from_parquet"),
        (b"ARROW1\0\0", "Arrow"),
        ("{}".encode("utf-16"), "line 1: not UTF-8"),
    ],
)
def test_files_of_other_kinds(magic, expected, read, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(magic + b"\0\1\2\n\xff" * 9)
    assert expected in refused(read, path)


def test_what_is_no_file(read, tmp_path):
    assert "cannot be read" in refused(read, tmp_path)
    assert "cannot be read (No such file" in refused(read, tmp_path / "missing.jsonl")
    assert "cannot be read (Not a directory" in refused(read, Path(__file__) / "rows.jsonl")


def test_the_store_takes_no_pipe(tmp_path):
    """It would wait for ever, and could read it only once."""
    os.mkfifo(tmp_path / "pipe")
    assert "no ordinary file" in refused(lambda x: open_rows(x, tmp_path), tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_no_permission(read, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINE)
    path.chmod(0)
    assert "cannot be read (Permission denied)" in refused(read, path)


def test_a_disk_that_fails_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINE)

    def fail(*_args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
        yield

    monkeypatch.setattr(datasets, "read_lines", fail)
    monkeypatch.setattr(convert_rows, "read_lines", fail)
    for reader in (read_jsonl, first_row, lambda x: open_rows(x, tmp_path)):
        assert "cannot be read (Input/output error)" in refused(reader, path)


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [FULL])
    (tmp_path / "rows.jsonl.partial").symlink_to("/dev/full")
    assert "cannot be written (No space left" in refused(lambda x: write_jsonl(x, [FULL] * 9), path)
    assert read_jsonl(path) == [FULL]
    assert [x.name for x in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "rows.jsonl"
    assert "cannot be written" in refused(lambda x: write_jsonl(x, [FULL]), path)


# --- anything ------------------------------------------------------------------------------------

valid = st.sampled_from([LINE, json.dumps(FULL).encode(), nested(3)])
pieces = st.one_of(
    valid,
    valid,
    st.binary(max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\0", b'"', b"{", b"}", b"\\ud83d", b"\xef\xbb\xbf", b"1e9"]),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@example(content=b"[" * 100_000)
@given(content=st.lists(pieces, max_size=6).map(b"".join) | st.binary(max_size=40))
def test_any_bytes_are_rows_or_refused(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(content)
    plain = outcome(read_jsonl, path)
    assert outcome(lambda x: list(open_rows(x, path.parent)), path) == plain
    if isinstance(plain, list):
        assert first_row(path) == plain[0]
        write_jsonl(path, plain)
        assert read_jsonl(path) == plain


@settings(max_examples=200, deadline=None, derandomize=True)
@given(at=st.integers(0, 200), put=st.binary(max_size=3), gone=st.integers(0, 3))
def test_a_valid_file_with_one_change(at, put, gone, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "changed.jsonl"
    whole = json.dumps(FULL).encode() + b"\n" + LINE
    path.write_bytes(whole[:at] + put + whole[at + gone :])
    assert outcome(lambda x: list(open_rows(x, path.parent)), path) == outcome(read_jsonl, path)


def outcome(read: Reader, path: Path) -> list[Row] | str:
    """Rows or the message; any other exception fails the test."""
    try:
        return list(read(path))
    except UserError as error:
        return str(error)
