"""Exports: comparing one with its model, describing it, publishing it."""

__all__: list[str] = []
