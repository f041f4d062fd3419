"""Rows, tokenizers and batches."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.data.batches import Batch as Batch
    from weighted_mtp.data.collators import AlpacaCollator as AlpacaCollator
    from weighted_mtp.data.datasets import read_jsonl as read_jsonl
    from weighted_mtp.data.datasets import write_jsonl as write_jsonl
    from weighted_mtp.data.examples import Example as Example
    from weighted_mtp.data.templates import TEMPLATES as TEMPLATES
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "batches": "Batch",
            "collators": "TEMPLATES AlpacaCollator",
            "examples": "Example",
            "datasets": "read_jsonl write_jsonl",
        },
    )
