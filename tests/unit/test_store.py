"""The row store: rows as they were, small columns, one conversion, nothing half-made trusted."""

import errno
import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets.arrow_writer import ArrowWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import ROOT

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.datasets import read_jsonl, write_jsonl
from weighted_mtp.data.rows import convert as convert_rows
from weighted_mtp.data.rows import store
from weighted_mtp.data.rows.store import open_rows

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
row = st.fixed_dictionaries(
    {
        "instruction": texts,
        "input": texts,
        "output": texts,
        "task_id": texts,
        "is_correct": st.booleans(),
        "metadata": st.dictionaries(st.sampled_from(["difficulty", "cf_rating"]) | texts, values),
    }
)


def make_rows(count: int) -> list:
    return [
        {
            "instruction": f"question {i}",
            "input": "",
            "output": "é" * (i % 7),
            "task_id": f"task {i % 5}",
            "is_correct": i % 3 > 0,
            "metadata": {"difficulty": "ABC"[i % 3], "n": i},
        }
        for i in range(count)
    ]


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, make_rows(200))
    return path


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def small_pieces(monkeypatch):
    """Files of a few rows meet what files of gigabytes meet."""
    monkeypatch.setattr(convert_rows, "SPAN_BYTES", 1000)
    monkeypatch.setattr(convert_rows, "_BATCH_ROWS", 3)


@pytest.fixture
def no_conversion(monkeypatch):
    """Call it to forbid conversions from then on."""

    def refuse(*_args):
        raise AssertionError("converted again")

    return lambda: monkeypatch.setattr(convert_rows, "convert", refuse)


def kept(cache: Path) -> list[str]:
    """What is in the cache besides locks."""
    return [x.name for x in (cache / "rows").glob("*") if x.suffix != ".lock"]


# --- rows ----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.lists(row, min_size=1, max_size=5))
def test_any_rows_come_back(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    write_jsonl(folder / "rows.jsonl", rows)
    opened = open_rows(folder / "rows.jsonl", folder)
    assert list(opened) == rows
    assert [opened[i] for i in range(-len(rows), 0)] == rows
    assert [len(rows)] == [len(opened)] == [len(opened.metadata)]


def test_rows_are_those_of_the_plain_reader(tmp_path, cache):
    path = tmp_path / "rows.jsonl"
    line = b'{"instruction": "a", "output": "b", "unknown": 1}'
    path.write_bytes(b"\xef\xbb\xbf\r\n" + line + b"\r\n \n\n" + line + b"\n" + line)
    opened = open_rows(path, cache)
    assert list(opened) == read_jsonl(path)
    assert [x["task_id"] for x in opened] == ["line-2", "line-5", "line-6"]


def test_rows_by_number(rows_file, cache, small_pieces):
    rows, opened = make_rows(200), open_rows(rows_file, cache)
    assert opened.rows([7, 199, 0, 7, -1]) == [rows[i] for i in (7, 199, 0, 7, -1)]
    assert opened.rows(np.array([3, 2])) == [rows[3], rows[2]]
    assert opened.rows([]) == opened[5:5] == []
    assert opened[10:60] == rows[10:60]
    assert opened[60:10:-7] == rows[60:10:-7]
    for wrong in (200, -201):
        with pytest.raises(IndexError):
            opened[wrong]


def test_rows_share_nothing(rows_file, cache):
    opened = open_rows(rows_file, cache)
    opened[0]["metadata"]["n"] = "changed"
    assert opened[0]["metadata"]["n"] == 0


def test_the_dataset_maps(rows_file, cache):
    dataset = open_rows(rows_file, cache).dataset
    lengths = dataset.select(range(10)).map(lambda x: {"n": json.loads(x["metadata"])["n"]})
    assert lengths["n"] == list(range(10))


def test_a_store_travels_to_other_processes(rows_file, cache):
    opened = open_rows(rows_file, cache)
    opened[0]
    parcel = pickle.dumps(opened)
    travelled = pickle.loads(parcel)  # noqa: S301 - our own
    assert travelled[150] == opened[150]
    assert (travelled.path, travelled.digest, len(travelled)) == (rows_file, opened.digest, 200)
    assert len(parcel) < 1000


# --- the small columns ---------------------------------------------------------------------------


def columns_of(metadata: list, folder: Path):
    rows = [{**make_rows(1)[0], "metadata": x} for x in metadata]
    write_jsonl(folder / "rows.jsonl", rows)
    return open_rows(folder / "rows.jsonl", folder / "cache").metadata


def test_difficulties_are_labels_and_numbers(tmp_path):
    given_ = ["B", "A", 11, 3, "3", 3.0, 2.5, "", None, True, [1], {}, math.inf, math.nan]
    m = columns_of([{"difficulty": x} for x in given_] + [{}], tmp_path)
    assert m.difficulties == ("2.5", "3", "11", "A", "B")
    found = [None if i < 0 else m.difficulties[i] for i in m.difficulty]
    assert found == ["B", "A", "11", "3", "3", "3", "2.5"] + [None] * 8
    expected = [math.nan] * 2 + [11, 3, 3, 3, 2.5] + [math.nan] * 8
    np.testing.assert_array_equal(m.difficulty_number, np.float32(expected))


def test_ratings_are_numbers_or_nothing(tmp_path):
    given_ = [1500, 800.5, 0, 0.0, None, "1500", True, [], 10**400, -(10**400), math.nan, 1e39]
    m = columns_of([{"cf_rating": x} for x in given_] + [{}], tmp_path)
    np.testing.assert_array_equal(m.cf_rating, np.float32([1500, 800.5] + [math.nan] * 11))


def test_columns_without_any_label(tmp_path):
    m = columns_of([{}, {}], tmp_path)
    assert m.difficulties == ()
    assert m.difficulty.tolist() == [-1, -1]
    assert np.isnan(m.difficulty_number).all()


def test_small_columns_have_their_types(rows_file, cache, small_pieces):
    rows, m = make_rows(200), open_rows(rows_file, cache).metadata
    kinds = {name: getattr(m, name).dtype.name for name in m.__annotations__ if name[-3:] != "ies"}
    assert kinds == {
        "is_correct": "bool",
        "problem": "int32",
        "difficulty": "int32",
        "difficulty_number": "float32",
        "cf_rating": "float32",
        "length": "int32",
    }
    assert m.is_correct.tolist() == [x["is_correct"] for x in rows]
    assert m.problem.tolist() == [i % 5 for i in range(200)]  # a problem has many solutions
    texts_ = [x["instruction"] + x["input"] + x["output"] for x in rows]
    assert m.length.tolist() == [len(x) for x in texts_]
    assert not m.length.flags.owndata  # memory-mapped


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
def test_filtering_touches_no_text(rows_file, cache):
    open_rows(rows_file, cache)
    program = f"""
import sys
from pathlib import Path
from weighted_mtp.data.rows.store import open_rows
opened = open_rows(Path({str(rows_file)!r}), Path({str(cache)!r}))
assert opened.metadata.is_correct.sum() == 133
maps = Path("/proc/self/maps").read_text()
assert "metadata.arrow" in maps and "rows-0" not in maps, maps
assert "datasets" not in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# --- conversion ----------------------------------------------------------------------------------


def test_many_pieces_are_one_file(rows_file, cache, small_pieces):
    rows_file.write_bytes(rows_file.read_bytes() + b'\n\n{"instruction": "a", "output": "b"}')
    opened = open_rows(rows_file, cache)
    assert len(list((cache / "rows").glob("*/rows-*.arrow"))) > 10
    assert opened[200]["task_id"] == "line-203"  # lines are counted across the pieces
    assert list(opened)[:200] == make_rows(200)


def test_a_piece_without_rows(tmp_path, cache, small_pieces):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, make_rows(2))
    path.write_bytes(b"\n" * 3000 + path.read_bytes() + b"\n" * 3000)
    assert list(open_rows(path, cache)) == make_rows(2)


def test_several_processes_write_the_same_files(rows_file, tmp_path, monkeypatch):
    """And name the same line where one is malformed."""
    monkeypatch.setattr(convert_rows, "SPAN_BYTES", 1000)
    made = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        assert list(open_rows(rows_file, folder, workers)) == make_rows(200)
        made.append({p.name: p.read_bytes() for p in folder.glob("rows/*/*.arrow")})
    assert made[0] == made[1]
    lines = rows_file.read_bytes().splitlines()
    lines[150] = lines[33] = b"{oops"
    rows_file.write_bytes(b"\n".join(lines))
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"rows\.jsonl, line 34: not valid JSON"):
            open_rows(rows_file, tmp_path / str(workers), workers)
        assert len(kept(tmp_path / str(workers))) == 1


def test_a_process_that_dies_is_reported(rows_file, cache, small_pieces, monkeypatch):
    def start():
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", ""], stdin=pipe, stdout=pipe, text=True)

    monkeypatch.setattr(convert_rows, "_start", start)
    with pytest.raises(UserError, match=r"rows\.jsonl: a process that read it died"):
        open_rows(rows_file, cache, workers=2)
    assert kept(cache) == []


def test_a_file_is_converted_once(rows_file, cache, no_conversion):
    first = open_rows(rows_file, cache)
    assert first.digest == hashlib.sha256(rows_file.read_bytes()).hexdigest()
    no_conversion()
    os.utime(rows_file, (0, 0))
    copy = rows_file.rename(rows_file.with_name("moved.jsonl"))
    again = open_rows(copy, cache)
    assert again.path == copy
    assert again.digest == first.digest
    assert list(again) == list(first)


def test_a_large_file_is_known_by_size_and_time(rows_file, cache, no_conversion, monkeypatch):
    monkeypatch.setattr(store, "HASHED_BYTES", 0)
    first = open_rows(rows_file, cache)
    assert first.digest == hashlib.sha256(rows_file.read_bytes()).hexdigest()
    monkeypatch.chdir(rows_file.parent)
    converting = convert_rows.convert
    no_conversion()
    assert list(open_rows(Path("rows.jsonl"), cache)) == list(first)
    monkeypatch.setattr(convert_rows, "convert", converting)
    os.utime(rows_file, (0, 0))
    open_rows(rows_file, cache)
    assert len(kept(cache)) == 2


def test_other_content_is_another_table(rows_file, cache):
    first = open_rows(rows_file, cache)
    write_jsonl(rows_file, make_rows(3))
    assert len(open_rows(rows_file, cache)) == 3
    assert first[199] == make_rows(200)[199]  # who reads the old one goes on


def test_the_cache_has_a_default(rows_file, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTED_MTP_CACHE", str(tmp_path / "there"))
    open_rows(rows_file)
    assert len(kept(tmp_path / "there")) == 1


CONVERTER = """
import sys, time
from pathlib import Path
from weighted_mtp.data.rows import convert as convert_rows
from weighted_mtp.data.rows import store
real = convert_rows.convert
def convert(*args):
    with open(sys.argv[3], "a") as file:
        file.write("converted\\n")
    time.sleep(0.5)
    return real(*args)
convert_rows.convert = convert
assert len(store.open_rows(Path(sys.argv[1]), Path(sys.argv[2]))) == 200
"""


def test_of_several_processes_one_converts(rows_file, cache, tmp_path):
    command = [sys.executable, "-c", CONVERTER, str(rows_file), str(cache), str(tmp_path / "log")]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "converted\n"


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_killed_conversion_leaves_nothing_that_is_trusted(rows_file, cache):
    program = CONVERTER.replace("    return real(*args)", "    real(*args)\n    os._exit(1)")
    command = [sys.executable, "-c", "import os" + program, str(rows_file), str(cache), os.devnull]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 1
    assert "partial" in kept(cache)[0]
    assert list(open_rows(rows_file, cache)) == make_rows(200)
    assert len(kept(cache)) == 1
    assert "partial" not in kept(cache)[0]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("rows-00000.arrow", cut),
        ("rows-00000.arrow", Path.unlink),
        ("metadata.arrow", cut),
        ("metadata.arrow", fill_with_zeros),
        ("metadata.arrow", Path.unlink),
        ("table.json", cut),
        ("table.json", fill_with_zeros),
        ("table.json", lambda path: path.write_text("[]")),
        ("table.json", lambda path: path.write_text("{}")),
        ("table.json", Path.unlink),
    ],
)
def test_a_damaged_table_is_made_anew(name, harm, rows_file, cache):
    open_rows(rows_file, cache)
    harm(next((cache / "rows").glob(f"*/{name}")))
    again = open_rows(rows_file, cache)
    assert list(again) == make_rows(200)
    assert len(again.metadata) == 200
    assert len(kept(cache)) == 1


def test_damage_that_is_seen_late_is_reported(rows_file, cache):
    opened = open_rows(rows_file, cache)  # which compares its sums
    fill_with_zeros(next((cache / "rows").glob("*/rows-00000.arrow")))
    for read in (lambda: opened[0], lambda: list(opened), lambda: opened.dataset):
        with pytest.raises(UserError, match="damaged") as caught:
            read()
        assert str(cache / "rows") in str(caught.value)


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (ArrowWriter, "write_table"),
        (ArrowWriter, "finalize"),
        (store, "write_metadata"),
        (Path, "write_text"),
        (Path, "rename"),
        (Path, "mkdir"),
    ],
)
def test_a_full_disk(owner, name, rows_file, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(UserError, match="No space left on device") as caught:
            open_rows(rows_file, cache)
    assert str(rows_file) in str(caught.value)
    assert "WEIGHTED_MTP_CACHE" in str(caught.value)
    assert kept(cache) == []
    assert list(open_rows(rows_file, cache)) == make_rows(200)


LIMITED = """
import resource, signal, sys
from pathlib import Path
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.rows.store import open_rows
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
try:
    open_rows(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4]))
except UserError as error:
    assert "File too large" in str(error) and "WEIGHTED_MTP_CACHE" in str(error), error
else:
    raise AssertionError("nothing raised")
"""


@pytest.mark.parametrize(("limit", "workers"), [(10_000, 1), (100, 2)])
def test_writes_that_the_system_refuses(limit, workers, rows_file, cache):
    """Real failing writes: no file may grow past the limit."""
    arguments = [str(rows_file), str(cache), str(limit), str(workers)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert kept(cache) == []


def test_a_cache_that_cannot_be(rows_file, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be stored") as caught:
        open_rows(rows_file, tmp_path / "file")
    assert "WEIGHTED_MTP_CACHE" in str(caught.value)


@pytest.mark.parametrize("hashed", [0, 1 << 20])
def test_a_file_that_is_still_written(hashed, rows_file, cache, monkeypatch):
    real = convert_rows.convert

    def convert(path, *args):
        converted = real(path, *args)
        path.write_bytes(path.read_bytes() * 2)
        return converted

    monkeypatch.setattr(store, "HASHED_BYTES", hashed)
    monkeypatch.setattr(convert_rows, "convert", convert)
    with pytest.raises(UserError, match="changed while it was read"):
        open_rows(rows_file, cache)
    assert kept(cache) == []
