"""Kept in the cache: made once, whole or not at all, by one process however many want it."""

import logging
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weighted_mtp.core import cache
from weighted_mtp.core.cache import kept
from weighted_mtp.core.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "kind" / "key"


def read(folder: Path) -> str:
    text = (folder / "text").read_text()
    if text != "whole":
        raise ValueError("half of it")
    return text


def write(folder: Path) -> None:
    (folder / "text").write_text("whole")


def keep(folder: Path, make=write) -> str:
    return kept(folder, read, make, "the words of a book")


def beside(folder: Path) -> list[str]:
    return [path.name for path in folder.parent.iterdir() if path.suffix != ".lock"]


def test_what_is_there_is_not_made_again(folder):
    keep(folder)
    assert keep(folder, make=None) == "whole"
    assert beside(folder) == ["key"]


@pytest.mark.parametrize("harm", [lambda x: x.write_text("wh"), Path.unlink])
def test_what_is_damaged_is_made_anew_and_said_once(folder, harm, monkeypatch):
    keep(folder)
    harm(folder / "text")
    said = []
    monkeypatch.setattr(cache._log, "log", lambda level, *words: said.append((level, words[2])))
    assert keep(folder) == "whole"
    assert [why for level, why in said if level == logging.WARNING] in (
        [f"{folder}/text: its SHA-256 is not the one in sums.json"],
        [f"{folder}/text: is missing, but sums.json lists it"],
    )


def test_what_a_killed_process_left_is_removed(folder):
    left = folder.with_name("key.partial")
    left.mkdir(parents=True)
    (left / "more").touch()
    keep(folder)
    assert beside(folder) == ["key"]
    assert {path.name for path in folder.iterdir()} == {"text", "sums.json"}


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (UserError("bad"), UserError),
        (NotImplementedError("no locks"), UserError),
        (OSError(28, "No space left"), UserError),
    ],
)
def test_what_goes_wrong_leaves_nothing(folder, raised, seen):
    def make(partial: Path) -> None:
        write(partial)
        raise raised

    with pytest.raises(seen) as caught:
        keep(folder, make)
    assert beside(folder) == []
    if caught.value is not raised:
        reason = "No space left" if isinstance(raised, OSError) else "no locks"
        assert str(caught.value) == (
            f"{folder.parent}: the words of a book cannot be stored ({reason}); make room there, "
            "or set data.cache_dir (or WEIGHTED_MTP_CACHE) to another folder"
        )
    assert keep(folder) == "whole"


def keep_slowly(folder: Path, gate, answers) -> None:
    def make(partial: Path) -> None:
        with (folder.parent / "log").open("a") as log:
            log.write("made\n")
        time.sleep(0.3)
        write(partial)

    gate.wait()
    answers.put(keep(folder, make))


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
def test_of_several_processes_one_makes_it(folder):
    """The ranks of a training start together."""
    fork = multiprocessing.get_context("fork")  # a fresh one takes seconds
    gate, answers = fork.Barrier(3), fork.Queue()
    running = [fork.Process(target=keep_slowly, args=(folder, gate, answers)) for _ in range(3)]
    for process in running:
        process.start()
    assert [answers.get(timeout=30) for _ in running] == ["whole"] * 3
    for process in running:
        process.join(30)
    assert (folder.parent / "log").read_text() == "made\n"


UNGUARDED = """
import sys
from pathlib import Path
from weighted_mtp.data.tokens.corpus import Corpus
from weighted_mtp.data.tokens.text_tokens import token_streams
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
here = Path(sys.argv[0]).parent
token_streams(Corpus(here / "book.txt"), ByteTokenizer(), cache=here / "cache", workers=2)
"""


def test_a_script_that_each_process_runs_again_does_not_wait_for_itself(tmp_path):
    (tmp_path / "book.txt").write_text("words")
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert 'put what the script does below `if __name__ == "__main__":`' in done.stderr
    assert done.stderr.rstrip().endswith('the script that runs has no `if __name__ == "__main__":`')
    assert beside(tmp_path / "cache" / "text" / "key") == []
