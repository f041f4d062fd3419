"""What every other room may lean on: types, errors, recipes, logging."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.core.device import resolve_device as resolve_device
    from weighted_mtp.core.errors import UserError as UserError
    from weighted_mtp.core.logging import get_logger as get_logger
    from weighted_mtp.core.types import Judge as Judge
    from weighted_mtp.core.types import Program as Program
    from weighted_mtp.core.types import Row as Row
    from weighted_mtp.core.types import Verdict as Verdict
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "device": "resolve_device",
            "errors": "UserError",
            "logging": "get_logger",
            "types": "Judge Program Row Verdict",
        },
    )
