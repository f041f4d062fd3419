"""Shipped recipes (one for each pipeline, with settings for 7B) and presets (another scale)."""

__all__: list[str] = []
