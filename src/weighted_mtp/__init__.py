"""Train, weight, decode and evaluate multi-token-prediction LLaMA models in pure PyTorch."""

__version__ = "0.1.0"
