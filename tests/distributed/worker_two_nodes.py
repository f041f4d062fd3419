"""Started by torchrun: two processes that take themselves for two nodes.

    worker_two_nodes.py FOLDER ARGUMENT …

The second one looks for the run directory in another place, as if it were not shared; then both
look in the same place. One waits for the other for longer than an exchange may take, and learns of
its failure. At last they train by the arguments.
"""

import contextlib
import io
import os
import sys
import time
from pathlib import Path

import pytest
from tests.helpers import end_worker

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.runtime import distributed, shared_directory
from weighted_mtp.runtime.environment import environment
from weighted_mtp.runtime.main_process import on_main

TIMEOUT = 3.0  # seconds


def not_shared(own: Path, arguments: list[str]) -> None:
    own.mkdir()
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        status = main(["train", *arguments, "--output-dir", str(own / "runs" / "mine")])
    assert (status, list(own.iterdir())) == (2, []), printed.getvalue()
    sys.stdout.write(f"rank {distributed.rank()} {printed.getvalue()}")


def shared(folder: Path) -> None:
    with environment("cpu"):
        before = sorted(folder.iterdir())
        distributed.barrier()
        for place in (folder, folder / "runs" / "mine"):
            shared_directory.check_directory(place)
        distributed.barrier()
        assert sorted(folder.iterdir()) == before


def fail() -> None:
    raise KeyError


def patient() -> None:
    with environment("cpu", timeout_minutes=TIMEOUT / 60):
        on_main(lambda: time.sleep(TIMEOUT + 1))
        with pytest.raises(KeyError if distributed.is_main_process() else UserError):
            on_main(fail)


if __name__ == "__main__":
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    shared_directory.PATIENCE = 2
    not_shared(folder / f"node{distributed.rank()}", arguments)
    shared(folder)
    patient()
    assert main(["train", *arguments]) == 0
    with environment("cpu"):
        end_worker()
