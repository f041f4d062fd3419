"""Training rows that a model writes itself."""
