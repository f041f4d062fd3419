"""Data sets from elsewhere, as labelled rows and problems with tests (docs/data.md).

A file is listed and cut into units (`files`), each unit is converted by a source (`sources/`) and
written as a part (`parts`), by several processes (`pool`); at the end the parts are put together
(`merge`). `run.prepare` does it all; `check.check` only looks.
"""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.data.prepare.check import Findings as Findings
    from weighted_mtp.data.prepare.run import PrepareRequest as PrepareRequest
    from weighted_mtp.data.prepare.run import prepare as prepare
else:
    __all__, __getattr__, __dir__ = exports(
        __name__, {"check": "Findings", "run": "PrepareRequest prepare"}
    )
