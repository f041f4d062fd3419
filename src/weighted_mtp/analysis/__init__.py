"""Pictures of a run."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.analysis.charts import Curve as Curve
    from weighted_mtp.analysis.charts import line_chart as line_chart
    from weighted_mtp.analysis.charts import save_png as save_png
    from weighted_mtp.analysis.html_report import ProgramCard as ProgramCard
    from weighted_mtp.analysis.html_report import Report as Report
    from weighted_mtp.analysis.html_report import Table as Table
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "charts": "Curve line_chart save_png",
            "html_report": "ProgramCard Report Table",
        },
    )
