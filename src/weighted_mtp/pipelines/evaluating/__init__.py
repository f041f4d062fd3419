"""Models judged by the programs they write, and experiments made of such evaluations."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.pipelines.evaluating.writer import ModelWriter as ModelWriter
else:
    __all__, __getattr__, __dir__ = exports(__name__, {"writer": "ModelWriter"})
