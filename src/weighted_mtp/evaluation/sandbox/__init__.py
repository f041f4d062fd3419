"""Run generated programs in confinement and judge them.

Imports nothing: its processes start without the packages of the environment.
"""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.evaluation.sandbox.host import Isolation as Isolation
    from weighted_mtp.evaluation.sandbox.host import Sandbox as Sandbox
    from weighted_mtp.evaluation.sandbox.host import Worker as Worker
    from weighted_mtp.evaluation.sandbox.host import WorkerDiedError as WorkerDiedError
else:
    __all__, __getattr__, __dir__ = exports(
        __name__, {"host": "Isolation Sandbox Worker WorkerDiedError"}
    )
