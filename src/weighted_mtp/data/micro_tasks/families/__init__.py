"""Every family of micro tasks, a module per kind. A new family is one more entry in a list."""

from weighted_mtp.data.micro_tasks.families import arithmetic, lists, loops, strings
from weighted_mtp.data.micro_tasks.family import Family

FAMILIES: tuple[Family, ...] = (
    *arithmetic.FAMILIES,
    *strings.FAMILIES,
    *lists.FAMILIES,
    *loops.FAMILIES,
)

__all__ = ["FAMILIES"]
