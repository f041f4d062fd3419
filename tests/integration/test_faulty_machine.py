"""A training goes on, or ends in one line, whatever happens to its streams, its directory and its
disk."""

import io
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.integration.helpers_training import (
    SMALL,
    checkpoint_names,
    last_checkpoint,
    records,
    resume,
    rows_file,  # noqa: F401  # a fixture
    train,
    train_arguments,
)

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.lock import LOCK, only_writer
from weighted_mtp.core.streams import tolerant_streams
from weighted_mtp.pipelines.metrics_utils import read_metrics
from weighted_mtp.pipelines.training.trainer import Trainer

SHORT = {**SMALL, "training__steps": 2, "training__save_every": 1, "training__validate_every": 2}

# --- streams -------------------------------------------------------------------------------------


class Broken(io.TextIOBase):
    """A stream that fails after some writes."""

    encoding = "ascii"

    def __init__(self, error: Exception, writes: int = 0) -> None:
        self.error, self.left, self.text = error, writes, ""

    def write(self, text: str) -> int:
        if self.left == 0:
            raise self.error
        self.left -= 1
        text.encode("ascii")
        self.text += text
        return len(text)


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left"), ValueError("closed")],
)
@pytest.mark.parametrize("writes", [0, 1])
def test_training_outlives_its_streams(tmp_path, rows_file, monkeypatch, error, writes):  # noqa: F811
    monkeypatch.setattr("sys.stderr", Broken(error, writes))
    monkeypatch.setattr("sys.stdout", Broken(error))
    assert train(tmp_path / "r", rows_file, **SHORT) == 0
    assert last_checkpoint(tmp_path / "r").name == "step-00000002"
    log = (tmp_path / "r" / "train.log").read_text(encoding="utf-8")
    assert "step 2  validation  head 1" in log
    assert "standard error cannot be written any more" in log


def test_characters_that_an_encoding_lacks_are_escaped(monkeypatch):
    stream = Broken(OSError(), writes=9)
    monkeypatch.setattr("sys.stdout", stream)
    with tolerant_streams(output=True):
        print("a · ☃")
    assert stream.text == "a \\xb7 \\u2603\n"


@pytest.mark.parametrize("command", ["head", "ascii"])
def test_a_shell_that_stops_listening(tmp_path, rows_file, command):  # noqa: F811
    run = [sys.executable, "-m", "weighted_mtp", "train"]
    run += train_arguments(tmp_path / "r", rows_file, **SHORT)
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
    if command == "head":
        full = os.open("/dev/full", os.O_WRONLY)
        process = subprocess.Popen(run, stdout=full, stderr=subprocess.PIPE)
        process.stderr.readline()
        process.stderr.close()
        assert process.wait(120) == 0
    else:
        done = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0
        assert "done: 2 steps" in done.stdout
    assert last_checkpoint(tmp_path / "r").name == "step-00000002"


def test_what_exists_for_its_output_fails_without_it(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", Broken(OSError(28, "No space left on device")))
    assert main(["plan", "--recipe", "baseline", "--model", "7b", "--gpus", "8"]) == 2
    assert "the output cannot be written" in capsys.readouterr().err


# --- one writer ----------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from weighted_mtp.core.lock import only_writer
with only_writer(Path(sys.argv[1]), ""):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(directory):
    """Another process writes there."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("recipe", ["baseline", "verifiable"])
def test_a_second_run_is_refused(tmp_path, rows_file, capsys, recipe):  # noqa: F811
    run_dir, changes = tmp_path / "r", dict(SHORT)
    if recipe == "verifiable":
        changes |= {"critic_stage__steps": 1, "objective__value__trunk": "all"}
    with held_by_another(run_dir) as process:
        assert train(run_dir, rows_file, recipe, **changes) == 2
        error = capsys.readouterr().err
        assert f"process {process.pid} on " in error
        assert "is writing here" in error
        assert not (run_dir / "config.yaml").exists()
    assert train(run_dir, rows_file, recipe, **changes) == 0  # killed, it holds nothing
    with held_by_another(run_dir):
        assert resume(run_dir) == 2
    assert resume(run_dir) == 0


def test_a_lock_may_be_taken_again_by_its_holder(tmp_path):
    with only_writer(tmp_path / "a", ""), only_writer(tmp_path / "b" / ".." / "a", ""):
        assert (tmp_path / "a" / LOCK).exists()
    assert not (tmp_path / "a").exists()  # nothing else was in it
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), only_writer(tmp_path / "file", ""):
        pass
    with only_writer(tmp_path / "a", ""):
        pass


# --- directories and disks -----------------------------------------------------------------------


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_directory_deleted_in_mid_run(tmp_path, rows_file, capsys, monkeypatch, log_every):  # noqa: F811
    step = Trainer.train_step

    def deleting(self):
        if self.step == 1:
            shutil.rmtree(self.run_dir)
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", deleting)
    changes = {**SHORT, "training__log_every": log_every, "training__steps": 4}
    assert train(tmp_path / "r", rows_file, **changes) == 2
    assert "was deleted or moved while the run wrote to it" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of so many KiB."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
            pytest.skip("this user may not mount a small file system")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("size", [4, 8, 24, 96, 144, 200, 260, 330])
def test_a_disk_that_fills(tmp_path, rows_file, capfd, small_disk, size):  # noqa: F811
    run_dir = small_disk(size) / "r"
    changes = {**SHORT, "training__steps": 3, "training__keep_last": 2}
    status = train(run_dir, rows_file, **changes)
    error = capfd.readouterr().err
    assert "Traceback" not in error
    if status == 0:
        assert last_checkpoint(run_dir).name == "step-00000003"
        return
    assert status == 2
    assert "cannot be written" in error
    complete = [n for n in checkpoint_names(run_dir) if ".partial" not in n] if size > 8 else []
    moved = tmp_path / "larger"
    if complete:  # what was complete stays complete: the run goes on elsewhere
        shutil.copytree(run_dir, moved)
        assert resume(moved) == 0
        steps = [r["step"] for r in records(moved) if r["kind"] == "train"]
        assert steps == [1, 2, 3]


def test_metrics_on_a_full_disk_cut_one_record_at_most(tmp_path, rows_file, monkeypatch):  # noqa: F811
    opened = []

    class Full(io.FileIO):
        def write(self, data):
            opened.append(data)
            if len(opened) == 2:
                return super().write(data[:7])
            if len(opened) == 3:
                raise OSError(28, "No space left on device")
            return super().write(data)

    path_open = Path.open

    def open_full(self, mode="r", *args, **keywords):
        return Full(self, "a") if mode == "ab" else path_open(self, mode, *args, **keywords)

    monkeypatch.setattr(Path, "open", open_full)
    assert train(tmp_path / "r", rows_file, **{**SHORT, "training__steps": 6}) == 0
    read = read_metrics(tmp_path / "r" / "metrics.jsonl")
    assert {r["step"] for r in read if r["kind"] == "train"} >= {3, 4, 5, 6}
    assert main(["report", str(tmp_path / "r")]) == 0
