"""The families of one operation, a module per kind. A new family is one more entry in a list."""

from weighted_mtp.micro_tasks.families import (
    arithmetic,
    choices,
    lists,
    literals,
    loops,
    numbers,
    programs,
    runs,
    sequences,
    strings,
    text,
)
from weighted_mtp.micro_tasks.family import Family

SINGLES: tuple[Family, ...] = (
    *arithmetic.FAMILIES,
    *numbers.FAMILIES,
    *choices.FAMILIES,
    *literals.FAMILIES,
    *strings.FAMILIES,
    *text.FAMILIES,
    *lists.FAMILIES,
    *sequences.FAMILIES,
    *runs.FAMILIES,
    *loops.FAMILIES,
    *programs.FAMILIES,
)


__all__ = ["SINGLES"]
