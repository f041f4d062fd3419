"""Models. They know nothing of distribution, data or training."""
