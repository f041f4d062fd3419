"""Checkpoints of a run: written, resumed, copied to remote storage."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.pipelines.checkpointing.model_start import DeferredModel as DeferredModel
    from weighted_mtp.pipelines.checkpointing.remote_copies import Copies as Copies
    from weighted_mtp.pipelines.checkpointing.remote_directory import Remote as Remote
    from weighted_mtp.pipelines.checkpointing.resume_rules import Resume as Resume
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "model_start": "DeferredModel",
            "remote_copies": "Copies",
            "remote_directory": "Remote",
            "resume_rules": "Resume",
        },
    )
