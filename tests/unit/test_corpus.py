"""Documents of a corpus: kinds of files, what is left out, what is an error, who is held out."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from weighted_mtp.core.cache import cache_root
from weighted_mtp.core.config.text import TextConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.tokens.corpus import STDLIB, Corpus, held_out

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines_of(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def read(source: Path, **options: object) -> list[str]:
    return list(Corpus(source, **options).documents())


def mistake(source: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read(source, **options)
    return str(caught.value)


# --- kinds of files ------------------------------------------------------------------------------


def test_a_file_is_one_document_as_it_is(tmp_path):
    text = "one\r\n\r\n  two — ✓\n"
    path = write(tmp_path / "notes", "\ufeff" + text)
    assert read(path) == [text]


def test_a_separator_line_cuts_a_file(tmp_path):
    path = write(tmp_path / "many.txt", "a\n---\r\n\nb ---\n---\n---\nc")
    skipped = Counter()
    found = list(Corpus(path, separator="---").documents(skipped))
    assert found == ["a\n", "\nb ---\n", "c"]
    assert skipped == {"empty": 1}


def test_jsonl_takes_the_field_asked_for(tmp_path):
    path = write(tmp_path / "rows.jsonl", "\n" + lines_of({"text": "a"}, {"text": "b", "x": 1}))
    assert read(path) == ["a", "b"]
    path = write(tmp_path / "code.jsonl", lines_of({"content": "é\n"}, {"content": None}))
    assert read(path, key="content") == ["é\n"]


def test_tables_take_the_column_asked_for(tmp_path):
    table = pa.table({"code": ["a", None, "b\n"], "n": [1, 2, 3]})
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    pa.feather.write_feather(table, tmp_path / "file.arrow", compression="uncompressed")
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as stream:
        stream.write_table(table)
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        assert read(tmp_path / name, key="code") == ["a", "b\n"]


def test_a_saved_data_set_is_read(tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"text": ["x", "y"]}).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved") == ["x", "y"]


def test_a_folder_is_read_in_order_whatever_it_holds(tmp_path):
    write(tmp_path / "b" / "z.txt", "3")
    write(tmp_path / "a.md", "0")
    write(tmp_path / "b" / "c.jsonl", lines_of({"text": "1"}, {"text": "2"}))
    write(tmp_path / "b" / "skip.html", "no")
    write(tmp_path / ".git" / "d.txt", "no")
    write(tmp_path / ".hidden.txt", "no")
    pa.parquet.write_table(pa.table({"text": ["4"]}), tmp_path / "c.parquet")
    assert read(tmp_path) == ["0", "1", "2", "3", "4"]
    assert read(tmp_path, suffixes=(".html",)) == ["no"]


def test_the_standard_library_without_its_tests():
    files = Corpus(STDLIB).files()
    names = {path.name for path in files}
    assert {"argparse.py", "dataclasses.py"} <= names
    assert all(path.suffix == ".py" for path in files)
    folders = {part for path in files for part in path.parent.parts[-3:]}
    assert not folders & {"test", "tests", "idle_test", "site-packages"}


# --- what is left out ----------------------------------------------------------------------------


def test_a_few_bad_files_are_counted(tmp_path):
    write(tmp_path / "good.txt", "good")
    write(tmp_path / "latin.txt", "é".encode("latin-1"))
    write(tmp_path / "binary.txt", b"a\0b")
    write(tmp_path / "empty.txt", b"")
    write(tmp_path / "half.jsonl", '{"text": "\\ud800"}\n{"text": "fine"}\n')
    skipped = Counter()
    assert list(Corpus(tmp_path).documents(skipped)) == ["good", "fine"]
    assert skipped == {
        "not UTF-8": 1,
        "with a NUL": 1,
        "empty": 1,
        "with a lone surrogate": 1,
    }


@settings(max_examples=50, deadline=None, derandomize=True)
@given(documents=st.lists(texts, max_size=5))
def test_any_text_survives_jsonl(documents, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    write(path, lines_of(*({"text": text} for text in documents)))
    assert read(path) == [text for text in documents if text and "\0" not in text]


# --- mistakes ------------------------------------------------------------------------------------


def test_a_missing_source_is_named(tmp_path):
    assert "nowhere: no such file or folder; set data.text.path" in mistake(tmp_path / "nowhere")


def test_a_folder_with_nothing_to_read(tmp_path):
    write(tmp_path / "a.html", "x")
    assert "no file that ends in .txt, " in mistake(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"}\n{"txt": "b", "n": 1}', "line 2: no field 'text' (it has txt, n); set"),
        ("\n{broken", "line 2: not valid JSON"),
        ("[1]", "line 1: should be a JSON object, it is list"),
        ('{"text": 3}', "line 1: the field 'text' should be str, it is int"),
        (b'{"text": "\xff"}', "line 1: not UTF-8 at byte 10"),
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path, content, said):
    assert f"rows.jsonl, {said}" in mistake(write(tmp_path / "rows.jsonl", content))


def test_a_bad_table_is_named(tmp_path):
    pa.parquet.write_table(pa.table({"n": [1]}), tmp_path / "n.parquet")
    assert "no column 'text' (it has n)" in mistake(tmp_path / "n.parquet")
    assert "the column 'n' holds int64, not text" in mistake(tmp_path / "n.parquet", key="n")
    for name in ("bad.parquet", "bad.arrow", "ARROW1.arrow"):
        write(tmp_path / name, ("ARROW1" if "1" in name else "") + "garbage " * 9)
        assert re.search(
            f"{name}: (not an? .* file, or damaged|cannot be read)", mistake(tmp_path / name)
        )


def test_a_separated_file_that_is_no_text_is_named(tmp_path):
    path = write(tmp_path / "a.txt", b"fine\n\xff\n")
    assert "a.txt, line 2: not UTF-8" in mistake(path, separator="---")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_an_unreadable_file_is_named(tmp_path):
    path = write(tmp_path / "a.txt", "x")
    path.chmod(0)
    assert "a.txt: cannot be read" in mistake(path)


@pytest.mark.parametrize(
    "given_",
    [{"suffixes": ["py"]}, {"suffixes": []}, {"separator": "a\nb"}, {"validation_fraction": 1.0}],
)
def test_the_section_refuses(given_):
    with pytest.raises(ValidationError):
        TextConfig.model_validate(given_)


def test_the_section_tells_the_library_from_a_path():
    assert TextConfig.model_validate({"path": "python-stdlib"}).path == STDLIB
    assert TextConfig.model_validate({"path": "texts"}).path == Path("texts")
    dumped = TextConfig(path=Path("texts")).model_dump(mode="json")
    assert TextConfig.model_validate(dumped).path == Path("texts")


# --- fingerprint, held-out documents, cache folder -----------------------------------------------


def test_a_fingerprint_changes_with_what_is_read(tmp_path):
    path = write(tmp_path / "in" / "a.txt", "one")
    seen = {Corpus(path).fingerprint(), Corpus(tmp_path / "in").fingerprint()}
    assert Corpus(path, key="x").fingerprint() not in seen
    os.utime(path, ns=(1, 1))
    assert Corpus(path).fingerprint() in seen  # a small file is known by its content
    assert Corpus(tmp_path / "in").fingerprint() not in seen
    write(path, "two")
    assert Corpus(path).fingerprint() not in seen
    before = Corpus(tmp_path / "in").fingerprint()
    write(tmp_path / "in" / "b.txt", "three")
    assert Corpus(tmp_path / "in").fingerprint() != before


def test_about_the_fraction_is_held_out_and_always_the_same():
    documents = [f"document {i}" for i in range(4000)]
    chosen = [held_out(x, 0.1) for x in documents]
    assert 320 < sum(chosen) < 480
    assert chosen == [held_out(x, 0.1) for x in documents]
    assert not any(held_out(x, 0.0) for x in documents)
    assert all(held_out(x, 0.3) for x, held in zip(documents, chosen, strict=True) if held)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_root(tmp_path) == tmp_path
    monkeypatch.setenv("WEIGHTED_MTP_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.setenv("WEIGHTED_MTP_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "weighted-mtp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "weighted-mtp"
