"""Models. They know nothing of distribution, data or training."""

__all__ = ["meta_mtp"]
