"""The recipes that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def available(folder: Path = RECIPES) -> list[str]:
    """Return the names of the shipped recipes (given `RECIPES / "presets"`, of the presets)."""
    return sorted(path.stem for path in folder.glob("*.yaml"))
