"""The token-weighted multi-token-prediction loss."""

from weighted_mtp.losses.distillation import (
    Distillation,
    distillation_loss,
    mask_untaught,
)
from weighted_mtp.losses.linear_cross_entropy import fused_linear_cross_entropy
from weighted_mtp.losses.mtp_loss import (
    LossTerms,
    MTPLoss,
    count_targets,
    loss_of_terms,
    mtp_loss,
    shift_labels,
)

__all__ = [
    "Distillation",
    "LossTerms",
    "MTPLoss",
    "count_targets",
    "distillation_loss",
    "fused_linear_cross_entropy",
    "loss_of_terms",
    "mask_untaught",
    "mtp_loss",
    "shift_labels",
]
