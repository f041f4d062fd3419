"""The token-weighted multi-token-prediction loss."""

from weighted_mtp.losses.linear_cross_entropy import fused_linear_cross_entropy
from weighted_mtp.losses.mtp_loss import MTPLoss, count_targets, mtp_loss, shift_labels

__all__ = ["MTPLoss", "count_targets", "fused_linear_cross_entropy", "mtp_loss", "shift_labels"]
