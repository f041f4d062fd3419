"""Which tokens matter: weights from temporal differences, from Rho-1, and the controls of both."""

from weighted_mtp.value_weighting.controls import random_matched_weights, shuffle_weights
from weighted_mtp.value_weighting.policy_weighting import (
    probability_weights,
    surprise_scores,
    surprise_weights,
)
from weighted_mtp.value_weighting.rho1_weighting import (
    align_reference,
    compute_mtp_selective_weights,
    compute_rho1_stats,
)
from weighted_mtp.value_weighting.td_statistics import (
    TDStatsEMA,
    compute_td_stats,
    compute_weight_stats,
)
from weighted_mtp.value_weighting.td_weighting import (
    build_weights,
    compute_advantages,
    compute_td_errors,
    compute_td_targets,
    compute_value_loss,
)

__all__ = [
    "TDStatsEMA",
    "align_reference",
    "build_weights",
    "compute_advantages",
    "compute_mtp_selective_weights",
    "compute_rho1_stats",
    "compute_td_errors",
    "compute_td_stats",
    "compute_td_targets",
    "compute_value_loss",
    "compute_weight_stats",
    "probability_weights",
    "random_matched_weights",
    "shuffle_weights",
    "surprise_scores",
    "surprise_weights",
]
