"""SHA-256 sums of a training checkpoint: `sums.json` beside its other files.

`trainer.json` says that there are sums, so that their removal is noticed; checkpoints of earlier
versions have none.
"""

from __future__ import annotations

import time
from pathlib import Path

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import MARKER, is_sharded
from weighted_mtp.core.sums import SUMS, Sums, sums_of, verifying, write_sums
from weighted_mtp.models.meta_mtp.layouts.adapted import is_adapted_folder
from weighted_mtp.models.meta_mtp.layouts.huggingface import SUMS_FILE
from weighted_mtp.models.meta_mtp.layouts.native import METADATA
from weighted_mtp.runtime import distributed

log = get_logger(__name__)


def store_sums(partial: Path) -> None:
    """Write the sums of all files, but for those of the model, which has a listing of its own.

    Raises:
        OSError: what another node has written does not show up in time.
    """
    expected = {f"rng-{rank}.pt" for rank in range(distributed.world_size())}
    if is_sharded(partial):
        from weighted_mtp.runtime import shards  # slow to import, and rarely needed

        expected |= {f"shards/{name}" for name in shards.stored_files(partial / "shards")}
    deadline = time.monotonic() + distributed.FILE_LAG
    while lacking := [name for name in expected if not (partial / name).is_file()]:
        if time.monotonic() > deadline:
            raise OSError(f"{lacking[0]} is not there")
        time.sleep(0.5)
    files = [path for path in partial.rglob("*") if path.is_file()]
    model = partial / "model"
    listing = model / (SUMS_FILE if is_adapted_folder(model) else METADATA)
    chosen = (file for file in files if file == listing or model not in file.parents)
    write_sums(partial, sums_of(partial, chosen))


def checkpoint_sums(checkpoint: Path) -> Sums | None:
    """The sums of a checkpoint's files; None where an earlier version wrote it without any.

    Raises:
        UserError: they are damaged, or were removed.
    """
    if (checkpoint / SUMS).is_file():
        return Sums.read(checkpoint)
    if _had_sums(checkpoint / "trainer.json"):
        raise UserError(
            f"{checkpoint / SUMS}: is missing, with which this checkpoint was written; delete "
            "this checkpoint directory to resume from the one before it"
        )
    log.debug("%s: written without SHA-256 sums by an earlier version", checkpoint)
    return None


def verify_checkpoint(checkpoint: Path, always: bool = False) -> None:
    """Compare all files of a checkpoint with their sums, but for the weights in `model/`, whose
    sums are compared as they are read.

    Args:
        always: even where the environment says not to.

    Raises:
        UserError: a file is missing or not what was written, or the sums were removed.
    """
    sums = checkpoint_sums(checkpoint) if always or verifying() else None
    if sums is None:
        return
    sums.verify()
    known = {checkpoint / name for name in (SUMS, MARKER, *sums.expected)}
    found = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    model = checkpoint / "model"
    others = [path.name for path in found if path not in known and model not in path.parents]
    if others:
        log.warning("%s: not part of the checkpoint: %s", checkpoint, ", ".join(others[:5]))


def _had_sums(path: Path) -> bool:
    try:
        return "sums" in read_json(path)
    except (OSError, UserError, ValueError, TypeError):
        return False  # the reader of its content reports what is wrong with it
