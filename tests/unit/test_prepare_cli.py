"""`weighted-mtp prepare`: data sets written whole, the same each time, or one line why not."""

import pytest

from weighted_mtp.cli.main import main
from weighted_mtp.data.datasets import read_jsonl

MICRO = ["prepare", "micro", "--n", "12", "--max-difficulty", "4"]


def refuse(capsys, *arguments: str) -> str:
    """The one line on standard error."""
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file, and what was said while it was written."""
    path = tmp_path_factory.mktemp("data") / "new" / "micro.jsonl"
    assert main([*MICRO, "--seed", "3", "--incorrect", "2", "--out", str(path)]) == 0
    return path


def test_micro_writes_rows(written):
    rows = read_jsonl(written)
    assert len(rows) == 36
    assert len({row["task_id"] for row in rows}) == 12
    assert sum(row["is_correct"] for row in rows) == 12
    assert {row["metadata"]["split"] for row in rows} == {"train"}
    assert max(row["metadata"]["difficulty"] for row in rows) <= 4
    assert [path.name for path in written.parent.iterdir()] == ["micro.jsonl"]


def test_micro_says_what_it_did_and_repeats_itself(written, tmp_path, capsys):
    path = tmp_path / "again.jsonl"
    assert main([*MICRO, "--seed", "3", "--incorrect", "2", "--out", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("36 rows (12 correct, 24 incorrect) of 12 families in ")
    assert captured.out.rstrip().endswith(str(path))
    assert "problem 12/12" in captured.err
    assert path.read_bytes() == written.read_bytes()


def test_micro_writes_every_split(tmp_path):
    for split in ("validation", "test", "compositions"):
        path = tmp_path / f"{split}.jsonl"
        options = ["--split", split, "--incorrect", "0", "--out", str(path)]
        assert main([*MICRO, *options]) == 0
        rows = read_jsonl(path)
        assert {row["metadata"]["split"] for row in rows} == {split}
        assert all(row["is_correct"] for row in rows)


def test_micro_replaces_a_file_only_when_told(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text("mine\n")
    assert "--overwrite" in refuse(capsys, *MICRO, "--out", str(path))
    assert path.read_text() == "mine\n"
    assert main([*MICRO, "--out", str(path), "--overwrite"]) == 0
    assert len(read_jsonl(path)) == 24


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--n", "0"], "--n must be at least 1"),
        (["--correct", "-1"], "--correct must be at least 0"),
        (["--incorrect", "-2"], "--incorrect must be at least 0"),
        (["--correct", "0", "--incorrect", "0"], "no rows"),
        (["--correct", "9"], "styles"),
        (["--max-difficulty", "12"], "1 to 11"),
        (["--max-difficulty", "1", "--split", "compositions"], "holds"),
    ],
)
def test_micro_refuses_what_cannot_be(tmp_path, capsys, options, words):
    path = tmp_path / "rows.jsonl"
    assert words in refuse(capsys, *MICRO, "--out", str(path), *options)
    assert not path.exists()


def test_micro_refuses_a_target_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "directory" in refuse(capsys, *MICRO, "--out", str(tmp_path))
    assert "cannot be written" in refuse(capsys, *MICRO, "--out", str(tmp_path / "file" / "x"))


def test_bare_prepare_says_what_there_is(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    assert "micro" in capsys.readouterr().out
