"""Programs judged by running them."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.evaluation.benchmarks import Benchmark as Benchmark
    from weighted_mtp.evaluation.benchmarks import Problem as Problem
    from weighted_mtp.evaluation.benchmarks import load_benchmark as load_benchmark
    from weighted_mtp.evaluation.scores import pass_at_k as pass_at_k
    from weighted_mtp.evaluation.statistics import Interval as Interval
    from weighted_mtp.evaluation.statistics import bootstrap_interval as bootstrap_interval
    from weighted_mtp.evaluation.statistics import paired_difference as paired_difference
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "benchmarks": "Benchmark Problem load_benchmark",
            "scores": "pass_at_k",
            "statistics": "Interval bootstrap_interval paired_difference",
        },
    )
