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
from weighted_mtp.losses.token_order import OrderTargets, order_targets, token_order_loss

__all__ = [
    "Distillation",
    "LossTerms",
    "MTPLoss",
    "OrderTargets",
    "count_targets",
    "distillation_loss",
    "fused_linear_cross_entropy",
    "loss_of_terms",
    "mask_untaught",
    "mtp_loss",
    "order_targets",
    "shift_labels",
    "token_order_loss",
]
