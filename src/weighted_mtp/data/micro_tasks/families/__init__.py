"""Every family of micro tasks, a module per kind. A new family is one more entry in a list."""

from weighted_mtp.data.micro_tasks.families import arithmetic, lists, loops, strings
from weighted_mtp.data.micro_tasks.family import Family

FAMILIES: tuple[Family, ...] = (
    *arithmetic.FAMILIES,
    *strings.FAMILIES,
    *lists.FAMILIES,
    *loops.FAMILIES,
)


def up_to(difficulty: int) -> tuple[Family, ...]:
    """The families of at most this difficulty."""
    return tuple(family for family in FAMILIES if family.difficulty <= difficulty)


__all__ = ["FAMILIES", "up_to"]
