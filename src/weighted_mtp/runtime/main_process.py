"""Work of the main process that others have to wait for, however long it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from weighted_mtp.core.errors import UserError
from weighted_mtp.runtime import distributed

SAY_EVERY = 10.0  # seconds


def on_main(action: Callable[[], None], say: Callable[[], None] = lambda: None) -> None:
    """Do something on the main process alone; all return when it is done. Every process calls this.

    The others wait in exchanges of a second each, not in one: it may take longer than
    `runtime.timeout_minutes`, after which they would give up.

    Args:
        say: called every ten seconds on the main process.

    Raises:
        UserError: on all processes, if `action` raised something; on the main process it is that.
    """
    errors: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:  # passed on below, by the thread that can
            errors.append(error)

    thread = None
    if distributed.is_main_process():
        thread = threading.Thread(target=act, daemon=True)  # Ctrl-C does not wait for it
        thread.start()
    pause, said = 0.01, time.monotonic()
    while distributed.any_rank(thread is not None and thread.is_alive(), torch.device("cpu")):
        if thread is None:
            continue
        thread.join(pause)
        pause = min(2 * pause, 1.0)
        if time.monotonic() - said > SAY_EVERY:
            said = time.monotonic()
            say()
    failed = distributed.any_rank(bool(errors), torch.device("cpu"))
    if errors:
        raise errors[0]
    if failed:
        raise UserError(f"rank {distributed.rank()} ends: rank 0 has failed, and says why")
