"""A run directory while a run writes to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from weighted_mtp.core.files import check_output_directory
from weighted_mtp.core.lock import only_writer
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
