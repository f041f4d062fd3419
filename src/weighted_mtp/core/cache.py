"""Where prepared data is kept between runs.

What stands there can always be built again from the user's files: deleting the folder costs time
and nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "WEIGHTED_MTP_CACHE"
_FOLDER = "weighted-mtp"


def cache_root(given: Path | None = None) -> Path:
    """The folder of prepared data: the given one, else the environment's, else the user's own.

    Without ``given`` it is ``$WEIGHTED_MTP_CACHE``, else ``$XDG_CACHE_HOME/weighted-mtp``, else
    ``~/.cache/weighted-mtp``; an empty variable counts as unset. The folder is not created here.
    """
    if given is not None:
        return given.expanduser()
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / _FOLDER
    return Path.home() / ".cache" / _FOLDER
