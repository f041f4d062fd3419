"""Rows tokenised once: the same as encoding them anew, kept, rebuilt where needed, shared."""

import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighted_mtp.core import processes
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Row
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.tokens import encode_rows as row_encoding
from weighted_mtp.data.tokens import row_tokens as token_store
from weighted_mtp.data.tokens.row_tokens import TokenisedRows, tokenise
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer, make_tokenizer


class Rows:
    """Rows in a list, as a row store gives them; counts how many were read."""

    def __init__(self, rows: list[Row], digest: str = "a digest") -> None:
        self.path, self.digest = Path("some/rows.jsonl"), digest
        self.all, self.read = rows, 0

    def __len__(self) -> int:
        return len(self.all)

    def rows(self, indices) -> list[Row]:
        self.read += len(indices)
        return [self.all[i] for i in indices]


def row(number: int, output: str | None = None) -> Row:
    return {
        "instruction": f"Write a function that adds {number}.",
        "input": "" if number % 3 else f"x = {number}",
        "output": f"def f(x):\n    return x + {number}\n" if output is None else output,
        "task_id": f"problem é/{number % 7}",
        "is_correct": number % 4 != 1,
        "metadata": {},
    }


def make_rows(size: int) -> Rows:
    return Rows([row(i) for i in range(size)])


def plain(max_length: int = 100, template: str = "short", joint: bool = False) -> AlpacaCollator:
    return AlpacaCollator(ByteTokenizer(), template, max_length, joint=joint)


def everything(rows: Rows) -> np.ndarray:
    return np.arange(len(rows))


def only_folder(cache: Path) -> Path:
    folders = [path for path in (cache / "tokenised").iterdir() if path.is_dir()]
    assert len(folders) == 1
    return folders[0]


@pytest.fixture
def many_workers(monkeypatch):
    """Other processes join at once, however little there is to do."""
    monkeypatch.setattr(row_encoding, "TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(row_encoding, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(row_encoding, "_PART", 4)


@pytest.fixture
def forked_workers(many_workers, monkeypatch):
    """A fresh process takes seconds to start."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    monkeypatch.setattr(processes, "_START", "fork")


# --- what is read is what was encoded ------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.tuples(TEXTS, TEXTS, TEXTS, TEXTS, st.booleans()), min_size=1, max_size=12),
    data=st.data(),
    max_length=st.integers(2, 90),
    joint=st.booleans(),
)
def test_a_tokenised_row_is_the_encoded_row(tmp_path_factory, texts, data, max_length, joint):
    names = ("instruction", "input", "output", "task_id", "is_correct")
    rows = Rows([{**dict(zip(names, one, strict=True)), "metadata": {}} for one in texts])
    wanted = sorted(data.draw(st.sets(st.integers(0, len(texts) - 1))))
    collator = plain(max_length, joint=joint)
    cache = tmp_path_factory.mktemp("cache")
    found = tokenise(rows, np.array(wanted, dtype=np.int64), collator, cache)
    direct = [collator.encode(rows.all[i], i) for i in wanted]
    assert [found[i] for i in wanted] == list(found) == direct
    assert len(found) == len(wanted)
    assert found.rows.tolist() == wanted
    assert found.lengths.tolist() == [len(example.ids) for example in direct]
    assert found.truncated == sum(example.truncated for example in direct)
    assert found.without_response.tolist() == [e.row for e in direct if not e.has_targets]


def test_values_are_plain_python(tmp_path):
    """Numpy scalars do not go into JSON, and compare oddly."""
    example = tokenise(make_rows(5), np.array([3]), plain(), tmp_path)[np.int64(3)]
    kinds = [type(x) for x in (example.prompt_length, example.truncated, example.row)]
    assert kinds == [int, bool, int]
    assert [type(x) for x in (example.task_id, example.is_correct)] == [str, bool]
    assert type(example.ids) is list
    assert type(example.ids[0]) is int


@pytest.mark.parametrize("absent", [0, 4, 6, 100, -1])
def test_a_row_that_was_not_wanted_is_named(absent, tmp_path):
    found = tokenise(make_rows(20), np.array([3, 5, 9]), plain(), tmp_path)
    with pytest.raises(KeyError, match=rf"row {absent} is not among the 3 .*some/rows\.jsonl"):
        found[absent]


@pytest.mark.parametrize("wanted", [[3, 2], [1, 1], [0, 5, 4]])
def test_wanted_rows_must_ascend(wanted, tmp_path):
    with pytest.raises(ValueError, match="ascend"):
        tokenise(make_rows(6), np.array(wanted), plain(), tmp_path)


@pytest.mark.parametrize("wanted", [[-1, 2], [2, 6]])
def test_wanted_rows_must_be_there(wanted, tmp_path):
    with pytest.raises(IndexError, match=r"some/rows\.jsonl: a row number outside 0 … 5"):
        tokenise(make_rows(6), np.array(wanted), plain(), tmp_path)


@pytest.mark.parametrize(("vocab_size", "bytes_an_id"), [(259, 2), (1 << 16, 2), (1 << 17, 4)])
def test_ids_take_no_more_room_than_they_need(vocab_size, bytes_an_id, tmp_path):
    tokenizer = ByteTokenizer()
    tokenizer.vocab_size, tokenizer.eos_id = vocab_size, vocab_size - 1
    found = tokenise(make_rows(3), np.arange(3), AlpacaCollator(tokenizer), tmp_path)
    assert found[1].ids[-1] == vocab_size - 1
    ids = (only_folder(tmp_path) / "ids.bin").stat().st_size
    assert ids == found.lengths.sum() * bytes_an_id


def test_an_id_beyond_the_vocabulary_is_not_cut_down(tmp_path):
    tokenizer = ByteTokenizer()
    tokenizer.eos_id = 70_000
    with pytest.raises(UserError, match=r"some/rows\.jsonl: .*70000.*259"):
        tokenise(make_rows(3), np.arange(3), AlpacaCollator(tokenizer), tmp_path)


# --- kept between runs ---------------------------------------------------------------------------


def test_the_second_time_nothing_is_tokenised(tmp_path):
    rows = make_rows(600)
    first = tokenise(rows, everything(rows), plain(), tmp_path)
    assert rows.read == 600
    second = tokenise(rows, everything(rows), plain(), tmp_path)
    assert rows.read == 600
    assert list(first) == list(second)


def test_whatever_changes_the_tokens_has_a_folder_of_its_own(tmp_path):
    rows, other = make_rows(9), Rows(make_rows(9).all, "another digest")
    some = everything(rows)
    for store, wanted, collator in [
        (rows, some, plain()),
        (other, some, plain()),
        (rows, some[1:], plain()),
        (rows, some, plain(max_length=99)),
        (rows, some, plain(template="alpaca")),
        (rows, some, plain(joint=True)),
        (rows, some, AlpacaCollator(make_tokenizer("micro"), "short", 100)),
    ]:
        found = tokenise(store, wanted, collator, tmp_path)
        assert list(found) == [collator.encode(store.all[i], i) for i in wanted.tolist()]
    folders = [path for path in (tmp_path / "tokenised").iterdir() if path.is_dir()]
    assert len(folders) == 7


def test_what_does_not_change_the_tokens_does_not_matter(tmp_path):
    rows = make_rows(9)
    tokenise(rows, everything(rows), plain(), tmp_path)
    padded = AlpacaCollator(ByteTokenizer(), "short", 100, pad_to_multiple=8)
    tokenise(rows, everything(rows).astype(np.int32), padded, tmp_path)
    assert rows.read == 9


COLUMNS = ["rows", "offsets", "prompt_lengths", "truncated", "correct", "names", "name_offsets"]


@pytest.mark.parametrize("damage", [*COLUMNS, "ids", "longer", "gone", "meta", "empty meta"])
def test_a_damaged_folder_is_made_anew(damage, tmp_path):
    rows = make_rows(9)
    expected = list(tokenise(rows, everything(rows), plain(), tmp_path))
    folder = only_folder(tmp_path)
    if damage == "longer":
        with (folder / "ids.bin").open("ab") as file:
            file.write(b"\0\0")
    elif damage == "gone":
        (folder / "offsets.bin").unlink()
    elif "meta" in damage:
        (folder / "rows.json").write_text("{}" if damage == "empty meta" else "no JSON")
    else:
        os.truncate(folder / f"{damage}.bin", 5)
    assert list(tokenise(rows, everything(rows), plain(), tmp_path)) == expected
    assert rows.read == 18


class Stops:
    """An encoder that does not come to its end."""

    fingerprint = plain().fingerprint
    tokenizer = ByteTokenizer()

    def __init__(self, error: BaseException, after: int) -> None:
        self.error, self.left = error, after

    def encode(self, row, index=0):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return plain().encode(row, index)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), UserError("a bad row")])
def test_an_interrupted_build_leaves_nothing(error, tmp_path):
    rows = make_rows(300)
    with pytest.raises(type(error)):
        tokenise(rows, everything(rows), Stops(error, 280), tmp_path)
    assert [path for path in (tmp_path / "tokenised").iterdir() if path.is_dir()] == []
    assert len(list(tokenise(rows, everything(rows), plain(), tmp_path))) == 300


def test_what_a_killed_process_left_is_not_trusted(tmp_path):
    rows = make_rows(9)
    expected = list(tokenise(rows, everything(rows), plain(), tmp_path))
    folder = only_folder(tmp_path)
    partial = folder.with_name(folder.name + ".partial")
    folder.rename(partial)
    os.truncate(partial / "ids.bin", 5)
    assert list(tokenise(rows, everything(rows), plain(), tmp_path)) == expected
    assert not partial.exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"rows\.jsonl cannot be stored.*WEIGHTED_MTP_CACHE"):
        tokenise(make_rows(3), np.arange(3), plain(), tmp_path / "file")


def test_without_a_folder_the_users_cache_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTED_MTP_CACHE", str(tmp_path))
    tokenise(make_rows(3), np.arange(3), plain())
    assert only_folder(tmp_path).is_dir()


# --- several processes ---------------------------------------------------------------------------


def test_a_copy_in_another_process_reads_the_same_files(tmp_path):
    rows = make_rows(9)
    found = tokenise(rows, everything(rows), plain(), tmp_path)
    parcel = pickle.dumps(found)
    assert len(parcel) < 500  # a place on disk, no tokens
    assert list(pickle.loads(parcel)) == list(found)  # noqa: S301  # our own bytes


def test_a_copy_whose_files_are_gone_says_so(tmp_path):
    tokenise(make_rows(9), np.arange(9), plain(), tmp_path)
    folder = only_folder(tmp_path)
    (folder / "rows.json").unlink()
    with pytest.raises(UserError, match="damaged or gone") as caught:
        TokenisedRows(folder)
    assert str(folder) in str(caught.value)


def test_workers_make_the_same_files(tmp_path, many_workers):
    rows = make_rows(40)
    rows.all[17] = row(17, "x" * 200)
    for workers in (1, 2):
        tokenise(rows, everything(rows), plain(), tmp_path / str(workers), workers)
        assert rows.read == (40 if workers == 1 else 44)  # the rest was read elsewhere
    one, two = (only_folder(tmp_path / str(workers)) for workers in (1, 2))
    files = sorted(path.name for path in one.iterdir())
    assert len(files) == 12
    assert [(one / name).read_bytes() for name in files] == [
        (two / name).read_bytes() for name in files
    ]


def test_a_mistake_in_a_worker_comes_through(tmp_path, forked_workers):
    rows = make_rows(40)
    with pytest.raises(UserError, match="a bad row"):
        tokenise(rows, everything(rows), Stops(UserError("a bad row"), 5), tmp_path, workers=2)
    assert [path for path in (tmp_path / "tokenised").iterdir() if path.is_dir()] == []


class Dies(Stops):
    def encode(self, row, index=0):
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain().encode(row, index)


def test_a_worker_that_dies_is_said(tmp_path, forked_workers):
    rows = make_rows(40)
    with pytest.raises(UserError, match=r"some/rows\.jsonl: .*died.*data\.processes=1"):
        tokenise(rows, everything(rows), Dies(MemoryError(), 0), tmp_path, workers=2)
    assert [path for path in (tmp_path / "tokenised").iterdir() if path.is_dir()] == []


def test_many_rows_show_progress(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(token_store, "_SHOWN", 5)
    tokenise(make_rows(9), np.arange(9), plain(), tmp_path)
    assert "tokenising rows.jsonl, rows 9/9" in capsys.readouterr().err
    tokenise(make_rows(4), np.arange(4), plain(), tmp_path)
    assert capsys.readouterr().err == ""
