"""A run directory while a run writes to it, and what a run records about itself."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from weighted_mtp import __version__
from weighted_mtp.core.files import check_output_directory
from weighted_mtp.core.lock import only_writer
from weighted_mtp.runtime.environment import Environment
from weighted_mtp.runtime.main_process import on_main


@contextmanager
def writing_run(run_dir: Path) -> Iterator[None]:
    """Be the only run that writes to `run_dir`; every process calls this, the main one locks.

    Raises:
        UserError: another process writes there, or it cannot be written.
    """
    remedy = "wait for it, stop it, or give another --output-dir"
    with ExitStack() as held:

        def lock() -> None:
            check_output_directory(run_dir, "--output-dir")
            held.enter_context(only_writer(run_dir, remedy))

        on_main(lock)
        yield


def run_facts(env: Environment) -> dict[str, str | int | None]:
    """Return the `run` record of metrics.jsonl: when, where and with which versions it runs."""
    device = f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
    if env.device.type == "cuda":
        device = torch.cuda.get_device_name(env.device)
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device if env.device.type in ("cpu", "cuda") else str(env.device),
        "processes": env.world_size,
        "version": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _commit() -> str | None:
    """The git commit of the package's source; None if it is not run from a checkout."""
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
