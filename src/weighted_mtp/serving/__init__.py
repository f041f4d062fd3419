"""Serving a model over HTTP, for one machine: many requests share each forward pass."""
