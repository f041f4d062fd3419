"""Recipes: the sections of a recipe as models that reject unknown keys, and how files and
settings are merged into one."""
