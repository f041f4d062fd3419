"""Do all nodes see the same run directory?"""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path

import torch

from weighted_mtp.core.errors import UserError
from weighted_mtp.runtime import distributed

PATIENCE = 60
"""Looks, half a second apart: a network file system may take its time to show a new file."""
NAME_BYTES = 64


def several_nodes() -> bool:
    """Whether torchrun started processes on more than one machine."""
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        return True
    world = os.environ.get("WORLD_SIZE", "1")
    return int(os.environ.get("LOCAL_WORLD_SIZE", world)) < int(world)


def check_directory(directory: Path) -> None:
    """Find out by a small file, deleted again, whether a directory (or what there is of the path to
    it) is the same on all nodes. Every process calls this; without several nodes it does nothing.

    Raises:
        UserError: it is not, or cannot be written to.
    """
    if not several_nodes():
        return
    directory = directory.absolute()
    main = distributed.is_main_process()
    name = f".weighted-mtp-{distributed.from_main(secrets.randbits(48)):012x}"
    places = [directory, *directory.parents]
    mine = next(place for place in places if place.is_dir()) / name
    reason = ""
    if main:
        try:
            mine.touch()
        except OSError as error:
            reason = f"{mine.parent}: cannot be written to ({error.strerror})"
    try:
        if distributed.any_rank(bool(reason), torch.device("cpu")):
            raise UserError(reason or f"{directory}: rank 0 cannot write there, and says why")
        lacking = _nodes_without([place / name for place in places])
    finally:
        if main:
            mine.unlink(missing_ok=True)
    if lacking:
        raise UserError(
            f"{directory}: {', '.join(lacking)} does not see what the first node writes there; all "
            "nodes need one run directory: give an --output-dir on a file system that they share "
            "(NFS, Lustre, FSx, Filestore, …), by its full path"
        )


def _nodes_without(files: list[Path]) -> list[str]:
    """Names of the nodes with a process that sees none of the files, the same on all processes."""
    for look in range(PATIENCE):
        seen = any(file.exists() for file in files)
        if not distributed.any_rank(not seen, torch.device("cpu")):
            return []
        if look < PATIENCE - 1:
            time.sleep(0.5)
    names = torch.zeros(distributed.world_size(), NAME_BYTES, dtype=torch.int64)  # [rank, letter]
    if not seen:
        letters = list(socket.gethostname().encode()[:NAME_BYTES])
        names[distributed.rank(), : len(letters)] = torch.tensor(letters)
    rows = distributed.all_reduce_sum(names).tolist()
    found = (bytes(letter for letter in row if letter).decode(errors="replace") for row in rows)
    return sorted({name for name in found if name})
