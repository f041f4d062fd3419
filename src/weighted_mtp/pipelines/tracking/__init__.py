"""Experiment trackers: MLflow, Weights & Biases, TensorBoard."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.pipelines.tracking.trackers import Tracker as Tracker
    from weighted_mtp.pipelines.tracking.trackers import make_trackers as make_trackers
else:
    __all__, __getattr__, __dir__ = exports(__name__, {"trackers": "Tracker make_trackers"})
