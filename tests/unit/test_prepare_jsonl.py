"""Rows of one's own, and what holds for every source: units, resuming, errors in a line."""

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_chat_template import TEMPLATES as CHAT_TEMPLATES
from tests.unit.test_chat_template import byte_level, say

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import read_jsonl
from weighted_mtp.data.prepare import files, merge
from weighted_mtp.data.prepare.length import LengthLimit, TokenCounter
from weighted_mtp.data.prepare.pool import run_tasks
from weighted_mtp.data.prepare.run import PrepareRequest, prepare
from weighted_mtp.data.tokens.tokenizers import load_tokenizer, make_tokenizer

KILLED = textwrap.dedent(
    """
    import os, signal
    from pathlib import Path
    from weighted_mtp.data.prepare import files, parts, run

    files.UNIT_BYTES = 400
    if __name__ == "__main__":
        left = [4]

        def die(at):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        if {workers} == 1:  # in the middle of a part
            close = parts._Files.close
            parts._Files.close = lambda self: (die(0), close(self))[1]
        else:
            run.Progress.update = lambda self, *_: die(0)
        run.prepare(run.PrepareRequest("jsonl", {source!r}, Path({out!r}), workers={workers}))
    """
)


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "instruction": f"Say {number}.",
        "input": "",
        "output": f"print({number})",
        "task_id": f"say/{number // 2}",
        "is_correct": number % 2 == 0,
        "metadata": {"difficulty": number % 3},
    } | changes


def write(path: Path, *rows: Any) -> Path:
    """Dictionaries, or lines as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return path


def run(source: Path, out: Path, *options: str) -> int:
    return main(["prepare", "jsonl", "--source", str(source), "--out", str(out), *options])


def refuse(capsys, *arguments: str | Path) -> str:
    """The one line that says why."""
    capsys.readouterr()
    assert main(["prepare", "jsonl", *map(str, arguments)]) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("checking")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    return errors[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- rows ----------------------------------------------------------------------------------------


def test_good_rows_stay_and_bad_ones_are_named(tmp_path, capsys):
    source = write(
        tmp_path / "mine.jsonl",
        row(0),
        b"{broken",
        row(1, output=" "),
        row(2, is_correct="yes"),
        {"instruction": "no id", "output": "x", "extra": 1},
        b'{"instruction": "\\ud800", "output": "x"}',
        b"\xff",
        b'{"output": "x", "output": "y", "instruction": ""}',
        row(4, metadata={"difficulty": float("nan")}),
    )
    assert run(source, tmp_path / "out") == 0
    rows = read_jsonl(tmp_path / "out" / "train.jsonl")
    assert [r["task_id"] for r in rows] == ["say/0", "mine.jsonl/line-5"]
    bad = lines(tmp_path / "out" / "rejected.jsonl")
    assert [r["line"] for r in bad] == [2, 3, 4, 6, 7, 8, 9]
    reasons = " | ".join(r["reason"] for r in bad)
    for words in (
        "not valid JSON",
        "'output' is empty",
        "should be bool",
        "surrogate",
        "not UTF-8",
    ):
        assert words in reasons
    assert "given twice" in reasons
    assert bad[0]["file"] == str(source)
    assert bad[0]["excerpt"] == "{broken"
    said = capsys.readouterr().out
    assert "train, ignored fields: extra 1" in said
    assert "2 rows" in said


@pytest.mark.parametrize("tokenizer", ["bytes", "micro"])
def test_a_lone_surrogate_is_rejected_before_a_tokenizer_counts_it(tokenizer, tmp_path):
    bad = b'{"instruction": "a", "output": "x\\udfff"}'
    source = write(tmp_path / "mine.jsonl", row(0), bad)
    limit = ["--tokenizer", tokenizer, "--max-length", "999"]
    assert run(source, tmp_path / "out", *limit) == 0
    (rejected,) = lines(tmp_path / "out" / "rejected.jsonl")
    assert rejected["line"] == 2
    assert "surrogate" in rejected["reason"]


def test_duplicates_of_other_files_and_contradictions_go(tmp_path):
    write(tmp_path / "in" / "train-a.jsonl", row(0), row(1), row(0), row(2))
    write(
        tmp_path / "in" / "train-b.jsonl", row(1, task_id="else"), row(2, is_correct=False), row(4)
    )
    write(tmp_path / "in" / "test.jsonl", row(0), row(6))
    summary = prepare(PrepareRequest("jsonl", str(tmp_path / "in"), tmp_path / "out"))
    train = summary["splits"]["train"]
    assert train["dropped"] == {"contradictory": 2, "duplicate": 2}
    assert (train["written"], train["right"], train["wrong"]) == (3, 2, 1)
    outputs = [r["output"] for r in read_jsonl(tmp_path / "out" / "train.jsonl")]
    assert outputs == ["print(0)", "print(1)", "print(4)"]
    assert train["difficulties"] == {
        "0": {"right": 1, "wrong": 0},
        "1": {"right": 1, "wrong": 1},
    }
    assert summary["splits"]["test"]["also_in_train"] == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=30))
def test_judge_agrees_with_the_plain_rule(codes):
    expected = []
    for at, code in enumerate(codes):
        labels = {c & 1 for c in codes if c >> 1 == code >> 1}
        first = all(c >> 1 != code >> 1 for c in codes[:at])
        expected.append(merge.CONTRADICTORY if len(labels) > 1 else int(not first))
    assert merge.judge(np.array(codes, np.uint64)).tolist() == expected


def test_fields_may_have_other_names(tmp_path):
    theirs = {"question": "Q", "code": "C", "level": "hard", "instruction": "not this"}
    source = write(tmp_path / "a.jsonl", theirs)
    names = ("instruction=question", "output=code", "metadata.difficulty=level")
    options = [word for name in names for word in ("--map", name)]
    assert run(source, tmp_path / "out", "--split", "validation", *options) == 0
    (read,) = read_jsonl(tmp_path / "out" / "validation.jsonl")
    assert (read["instruction"], read["output"]) == ("Q", "C")
    assert read["metadata"] == {"difficulty": "hard"}


def test_the_length_limit_counts_what_training_sees(tmp_path):
    rows = [row(0), row(1, input="5", output="x = 1\n" * 20), row(2, output="x" * 300)]
    collator = AlpacaCollator(make_tokenizer("micro"), "short", 10**9)
    count = TokenCounter(LengthLimit("micro", "short", 10))
    lengths = [len(collator.encode(r).ids) for r in rows]
    assert [count(r) for r in rows] == lengths
    source = write(tmp_path / "train.jsonl", *rows)
    options = ["--tokenizer", "micro", "--template", "short"]
    assert run(source, tmp_path / "out", *options, "--max-length", str(sorted(lengths)[1])) == 0
    assert len(read_jsonl(tmp_path / "out" / "train.jsonl")) == 2
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["splits"]["train"]["dropped"] == {"too_long": 1}
    assert summary["limit"]["fingerprint"].startswith("huggingface-")


# --- files ---------------------------------------------------------------------------------------


def test_all_forms_give_the_same(tmp_path):
    rows = [row(i) for i in range(40)]
    table = pa.Table.from_pylist(rows)
    forms = {name: tmp_path / name / "train.x" for name in ("a", "b", "c", "d", "e")}
    write(forms["a"].with_suffix(".jsonl"), *rows)
    for name in "bcde":
        forms[name].parent.mkdir()
    forms["b"].with_suffix(".jsonl.gz").write_bytes(
        gzip.compress(b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(r).encode() for r in rows))
    )
    pq.write_table(table, forms["c"].with_suffix(".parquet"), row_group_size=7)
    with pa.ipc.new_stream(forms["d"].with_suffix(".arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    with pa.ipc.new_file(forms["e"].with_suffix(".arrow"), table.schema) as writer:
        writer.write_table(table)
    for path in forms.values():
        prepare(PrepareRequest("jsonl", str(path.parent), path.parent / "out", workers=1))
        assert read_jsonl(path.parent / "out" / "train.jsonl") == rows


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=20),
    size=st.integers(1, 50),
    ends=st.booleans(),
)
def test_units_cover_every_line_once(lengths, size, ends, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "x.jsonl"
    path.write_bytes(b"\n".join(b"x" * n for n in lengths) + b"\n" * ends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "UNIT_BYTES", size)
        _, units = files.cut(files.find_files(path, None, None)[0])
    data = path.read_bytes()
    assert b"".join(data[start:stop] for start, stop, _ in units) == data
    for start, _, first in units:
        assert start == 0 or data[start - 1 : start] == b"\n"
        assert first == 1 + data[:start].count(b"\n")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00039-e991a271dbfa9925.parquet", "train"),
        ("valid.jsonl", "validation"),
        ("my_dev.jsonl", "validation"),
        ("TEST.jsonl", "test"),
        ("prompt-0.parquet", "prompt"),
        ("HumanEval.jsonl.gz", None),
        ("strain.jsonl", None),
        ("latest.jsonl", None),
    ],
)
def test_names_tell_the_split(name, split):
    assert files.split_of(name) == split


def test_folders_tell_the_split_and_extras_are_passed_over(tmp_path):
    for name in ("default/test/0000.jsonl", "x.jsonl", "problems.train.jsonl", ".git/a.jsonl"):
        write(tmp_path / "in" / name, row(0))
    write(tmp_path / "in" / "out" / "train.jsonl", row(0))
    found = files.find_files(tmp_path / "in", tmp_path / "in" / "out", None)
    assert [(Path(f.path).name, f.split) for f in found] == [
        ("0000.jsonl", "test"),
        ("x.jsonl", None),
    ]


# --- any number of workers, any number of tries --------------------------------------------------


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A source of a dozen units with some of everything."""
    rows: list[Any] = [row(i % 60) for i in range(80)]
    rows[10], rows[33], rows[70] = b"?", b'{"a": 1}', row(5, is_correct=True)
    monkeypatch.setattr(files, "UNIT_BYTES", 400)
    write(tmp_path / "in" / "train.jsonl", *rows[:60])
    return write(tmp_path / "in" / "test.jsonl", *rows[60:]).parent


def test_workers_do_not_change_the_result(many, tmp_path):
    for workers in ("1", "2"):
        assert run(many, tmp_path / workers, "--workers", workers) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(lines(tmp_path / "1" / "rejected.jsonl")) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_command_goes_on(many, tmp_path, workers, capsys):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert run(many, whole, "--workers", "1") == 0
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(workers=workers, source=str(many), out=str(out)))
    done = subprocess.run([sys.executable, script], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [path.name for path in out.iterdir()] == [".parts"]
    assert len(list((out / ".parts").glob("*.done"))) >= 3
    capsys.readouterr()
    assert "another limit" in refuse(capsys, "--source", many, "--out", out, "--tokenizer", "bytes")
    assert "another source" in refuse(capsys, "--source", many / "test.jsonl", "--out", out)
    assert run(many, out, "--workers", "1") == 0
    assert "parts are there already" in capsys.readouterr().err
    assert contents(out) == contents(whole)


def test_a_worker_that_dies_is_one_line():
    with pytest.raises(UserError, match="a worker process died"):
        list(run_tasks(os._exit, [9, 9, 9], 2))


def test_an_old_result_is_replaced_only_when_told(many, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(many, out) == 0
    before = contents(out)
    assert "--overwrite" in refuse(capsys, "--source", many, "--out", out)
    assert contents(out) == before
    assert run(many / "train.jsonl", out, "--overwrite") == 0
    assert sorted(contents(out)) == ["rejected.jsonl", "summary.json", "train.jsonl"]


def test_a_full_disk_is_one_line_and_no_file(many, tmp_path, capsys):
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = tmp_path / "whole"
    assert run(many, whole) == 0
    largest = (whole / "train.jsonl").stat().st_size
    for allowed in (300, largest - 1):  # a part, and the whole
        resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, limits[1]))
        try:
            error = refuse_quietly(many, out, capsys)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "cannot be written" in error
        assert {p.name for p in out.iterdir()} <= {".parts"} if out.exists() else True
    assert run(many, out) == 0
    assert contents(out) == contents(whole)


def refuse_quietly(source: Path, out: Path, capsys) -> str:
    """Progress and the error."""
    capsys.readouterr()
    assert run(source, out, "--workers", "1") == 2
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return error


def test_a_source_that_changes_is_noticed(many, tmp_path, monkeypatch, capsys):
    from weighted_mtp.data.prepare import run as engine

    convert = engine.write_part

    def touch(*arguments):
        os.utime(many / "test.jsonl", ns=(1, 1))
        return convert(*arguments)

    monkeypatch.setattr(engine, "write_part", touch)
    assert "changed while it was read" in refuse_quietly(many, tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.parquet", b"PAR1 no"), ("a.arrow", b"no"), ("a.jsonl.gz", b"\x1f\x8bno"), ("a.csv", b"")],
)
def test_a_broken_file_is_one_line(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    assert name in refuse_quietly(tmp_path / name, tmp_path / "out", capsys)
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_mistakes_of_the_command_line(tmp_path, capsys):
    source, out = write(tmp_path / "in" / "a.jsonl", row(0)), tmp_path / "out"
    given = ["--source", source, "--out", out]
    assert "no such file" in refuse(capsys, "--source", tmp_path / "nowhere", "--out", out)
    assert "--out is missing" in refuse(capsys, "--source", source)
    assert "choose another" in refuse(capsys, "--source", source.parent, "--out", source.parent)
    assert "FIELD=THEIRS" in refuse(capsys, *given, "--map", "output")
    assert "need --tokenizer" in refuse(capsys, *given, "--max-length", "9")
    assert "at least 2" in refuse(capsys, *given, "--tokenizer", "bytes", "--max-length", "1")
    assert "--template x" in refuse(capsys, *given, "--tokenizer", "bytes", "--template", "x")
    assert "nor a path" in refuse(capsys, *given, "--tokenizer", "nothing")
    assert "at least 1" in refuse(capsys, *given, "--workers", "0")
    other = write(tmp_path / "file", b"")
    assert "is not a directory" in refuse(capsys, "--source", source, "--out", other)
    assert "--revision" in refuse(capsys, *given, "--revision", "main")
    assert not out.exists()
    (tmp_path / "empty").mkdir()
    assert "holds no" in refuse(capsys, "--source", tmp_path / "empty", "--out", out)
    assert main(["prepare", "codecontests", "--source", str(source), "--out", str(out)]) == 2
    assert "add --split" in capsys.readouterr().err


# --- only looking --------------------------------------------------------------------------------


def test_check_writes_nothing_and_counts(tmp_path, capsys, monkeypatch):
    source = write(tmp_path / "train.jsonl", row(0), row(1), row(2), row(2), row(5), row(4, a=1))
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "jsonl", "--check", "--source", str(source)]) == 0
    said = capsys.readouterr().out.splitlines()
    #                               rows bad right wrong problems only-right only-wrong
    assert said[1].split() == ["train", "6", "0", "4", "2", "3", "1", "0"]
    assert said[2:] == ["train, would be dropped: duplicate 1", "train, ignored fields: a 1"]
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_check_names_bad_rows_by_line(tmp_path, capsys):
    source = write(tmp_path / "train.jsonl", row(0), *[b"?"] * 7, row(1))
    assert main(["prepare", "jsonl", "--check", "--source", str(source), "--workers", "1"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith(f"{source}, line 2: not valid JSON")
    assert said.out.count("not valid JSON") == 5
    assert "… and 2 more" in said.out
    assert "7 of 9 rows are invalid" in said.err.splitlines()[-1]


def test_conversations_are_checked_counted_and_kept(tmp_path, capsys):
    """As JSONL, Parquet and Arrow, whose tables have null for keys that a message lacks."""
    folder = byte_level(tmp_path / "model", CHAT_TEMPLATES["mistral"])
    good = say("a", "b", "c", "d" * 20)
    rows = [
        {"messages": good, "is_correct": True},
        {"messages": good, "is_correct": True},  # a duplicate
        {"messages": say("a", "b", "c", "e"), "is_correct": True},
        {"messages": say("a", "x"), "is_correct": True},  # right and wrong: both go
        {"messages": say("a", "x"), "is_correct": False},
        {"messages": say("a", "b" * 60), "is_correct": True},  # too long
        {"messages": say("a", "b", system="s"), "is_correct": True},  # the template refuses it
        {"messages": say("a", " "), "is_correct": True},
        {"messages": say("a"), "is_correct": True},
    ]
    for row in rows:
        row["messages"] = [{**message, "name": None} for message in row["messages"]]
    table = pa.Table.from_pylist(rows)
    sources = {form: tmp_path / f"rows.{form}" for form in ("jsonl", "parquet", "arrow")}
    sources["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(table, sources["parquet"])
    with pa.OSFile(str(sources["arrow"]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    limit = ["--tokenizer", str(folder), "--template", "chat", "--max-length", "60"]
    for form, source in sources.items():
        out = tmp_path / form
        assert main(["prepare", "jsonl", "--source", str(source), "--out", str(out), *limit]) == 0
        kept = read_jsonl(out / "train.jsonl")
        assert [row["messages"] for row in kept] == [good, say("a", "b", "c", "e")]
        summary = json.loads((out / "summary.json").read_text())["splits"]["train"]
        assert summary["dropped"] == {"contradictory": 2, "duplicate": 1, "too_long": 1}
        reasons = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
        assert [reason.get("line", reason.get("row")) for reason in reasons] == [7, 8, 9]
        for reason, words in zip(
            reasons, ("must alternate", "assistant message is empty", "no assistant"), strict=True
        ):
            assert words in reason["reason"]
    capsys.readouterr()
    assert main(["prepare", "jsonl", "--source", str(sources["jsonl"]), "--check", *limit]) == 2
    said = capsys.readouterr()
    assert f"{sources['jsonl']}, line 9: 'messages' has no assistant turn" in said.out
    counter = TokenCounter(LengthLimit(str(folder), "chat"))
    collator = AlpacaCollator(load_tokenizer(folder), "chat", 10**9)
    assert [counter(row) for row in kept] == [len(collator.encode(row).ids) for row in kept]
