"""Pictures of a run."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.analysis.charts import Axis as Axis
    from weighted_mtp.analysis.charts import Curve as Curve
    from weighted_mtp.analysis.charts import line_chart as line_chart
    from weighted_mtp.analysis.html_report import ProgramCard as ProgramCard
    from weighted_mtp.analysis.html_report import Report as Report
    from weighted_mtp.analysis.html_report import Table as Table
    from weighted_mtp.analysis.plots import plot_losses as plot_losses
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "charts": "Axis Curve line_chart",
            "html_report": "ProgramCard Report Table",
            "plots": "plot_losses",
        },
    )
