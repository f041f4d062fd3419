"""The sources. A new one is a file here with a `SOURCE`, and its name in the tuple below."""

from __future__ import annotations

from weighted_mtp.data.prepare.source import Source
from weighted_mtp.data.prepare.sources import codecontests, humaneval, mbpp, user_rows

SOURCES: dict[str, Source] = {
    module.SOURCE.name: module.SOURCE for module in (codecontests, mbpp, humaneval, user_rows)
}
"""By the name of the sub-command."""

__all__ = ["SOURCES"]
