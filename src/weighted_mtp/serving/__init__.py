"""Serving a model over HTTP, for one machine: many requests share each forward pass."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.serving.engine import Engine as Engine
    from weighted_mtp.serving.service import Limits as Limits
    from weighted_mtp.serving.service import Service as Service
else:
    __all__, __getattr__, __dir__ = exports(
        __name__, {"engine": "Engine", "service": "Limits Service"}
    )
