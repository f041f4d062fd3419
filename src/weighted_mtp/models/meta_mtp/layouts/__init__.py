"""The three checkpoint layouts on disk, read and written; `checkpoints.py` is the door."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.models.meta_mtp.layouts.side_files import SideFiles as SideFiles
    from weighted_mtp.models.meta_mtp.layouts.source import Source as Source
else:
    __all__, __getattr__, __dir__ = exports(
        __name__, {"side_files": "SideFiles", "source": "Source"}
    )
