"""Training rows that a model writes itself."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.pipelines.generating.rows import Question as Question
    from weighted_mtp.pipelines.generating.self_rows import SelfRequest as SelfRequest
    from weighted_mtp.pipelines.generating.self_rows import SelfRows as SelfRows
    from weighted_mtp.pipelines.generating.self_rows import write_self_rows as write_self_rows
else:
    __all__, __getattr__, __dir__ = exports(
        __name__, {"rows": "Question", "self_rows": "SelfRequest SelfRows write_self_rows"}
    )
