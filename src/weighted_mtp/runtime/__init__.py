"""Processes, devices and seeds. Nothing above this room assumes that there is one process."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.runtime.environment import Environment as Environment
    from weighted_mtp.runtime.environment import seed_everything as seed_everything
    from weighted_mtp.runtime.main_process import on_main as on_main
    from weighted_mtp.runtime.modes import parallelise as parallelise
    from weighted_mtp.runtime.parallel import Parallel as Parallel
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "environment": "Environment seed_everything",
            "main_process": "on_main",
            "modes": "parallelise",
            "parallel": "Parallel",
        },
    )
