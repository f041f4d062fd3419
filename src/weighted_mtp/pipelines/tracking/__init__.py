"""Experiment trackers: MLflow, Weights & Biases, TensorBoard."""
