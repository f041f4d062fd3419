"""Labelled rows: JSONL files converted once into memory-mapped tables."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.data.rows.metadata import Metadata as Metadata
    from weighted_mtp.data.rows.store import RowStore as RowStore
    from weighted_mtp.data.rows.store import open_rows as open_rows
else:
    __all__, __getattr__, __dir__ = exports(
        __name__, {"metadata": "Metadata", "store": "RowStore open_rows"}
    )
