"""The operations that compositions are made of, each one the operation of a family of its own.

A part says a family's operation as a clause about `$it` and as one expression over `$it`. Its
constants are some of the family's, so that what is composed can also be met alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from weighted_mtp.micro_tasks.families import SINGLES
from weighted_mtp.micro_tasks.families.arithmetic import PRIMES
from weighted_mtp.micro_tasks.family import Family

Kind = Literal["number", "truth", "text", "list"]
_BY_NAME = {family.name: family for family in SINGLES}
_SOME_MARKS = "#*-+=_.:!?"


@dataclass(frozen=True)
class Part:
    """One operation.

    Attributes:
        family: where it occurs alone.
        takes: what it is applied to.
        gives: what comes out.
        says: a clause, as in "then multiply $it by $a".
        code: an expression over `$it`.
        space: which of the family's parameters.
        which: of a test only: what those that pass it are, as in "keep results that are ...".
        never_empty: it fails on an empty list.
        may_empty: it may leave an empty list of one that is not.
    """

    family: Family
    takes: Kind
    gives: Kind
    says: str
    code: str
    space: Mapping[str, Sequence[Any]]
    which: str = ""
    never_empty: bool = False
    may_empty: bool = False

    @property
    def name(self) -> str:
        """The family's name."""
        return self.family.name


def _part(
    name: str, takes: Kind, gives: Kind, says: str, code: str, which: str = "", **space: Any
) -> Part:
    never_empty, may_empty = space.pop("never_empty", False), space.pop("may_empty", False)
    return Part(_BY_NAME[name], takes, gives, says, code, space, which, never_empty, may_empty)


NUMBER_TO_NUMBER = tuple(
    _part(name, "number", "number", says, code, **space)
    for name, says, code, space in (
        (
            "linear",
            "multiply $it by $a and add $b",
            "$it * $a + $b",
            {"a": range(2, 9), "op": ("+",), "b": range(1, 10)},
        ),
        ("distance", "take the distance of $it from $a", "abs($it - $a)", {"a": range(5, 60)}),
        ("average", "average $it with $a, rounding down", "($it + $a) // 2", {"a": range(1, 60)}),
        ("round_down", "round $it down to a multiple of $a", "$it // $a * $a", {"a": range(3, 31)}),
        (
            "clamp",
            "limit $it to the range $low to $high",
            "max($low, min($it, $high))",
            {"low": range(3, 30, 3), "high": range(35, 100, 8)},
        ),
        (
            "discount",
            "take $b off $it if it is over $a",
            "$it - $b if $it > $a else $it",
            {"a": range(10, 60, 6), "b": range(2, 10)},
        ),
        (
            "halve_or",
            "halve $it if it is even (else multiply it by $a and add $b)",
            "$it // 2 if $it % 2 == 0 else $it * $a + $b",
            {"a": range(2, 8), "b": range(1, 11)},
        ),
        (
            "count_digit",
            "count how often the digit $d occurs in $it, times $a",
            "str($it).count('$d') * $a",
            {"d": range(10), "a": range(2, 9)},
        ),
        (
            "common_divisor",
            "find the greatest common divisor of $it and $a, times $b",
            "max([d for d in range(1, $a + 1) if $it % d == 0 and $a % d == 0]) * $b",
            {"a": (12, 18, 20, 24, 30, 36, 42, 45, 48, 60), "b": range(2, 9)},
        ),
        (
            "power_mod",
            "raise $it to the power $k modulo $m",
            "$it ** $k % $m",
            {"k": range(2, 7), "m": PRIMES[:10]},
        ),
        (
            "digit_sum",
            "add up the digits of $it, times $a plus $b",
            "sum([int(d) for d in str($it)]) * $a + $b",
            {"a": range(2, 10), "b": range(1, 10)},
        ),
    )
)
NUMBER_TO_TRUTH = tuple(
    _part(name, "number", "truth", f"say whether $it is {which}", code, which, **space)
    for name, which, code, space in (
        ("divisible", "divisible by $m", "$it % $m == 0", {"m": range(2, 25)}),
        (
            "between",
            "from $low to $high",
            "$low <= $it <= $high",
            {"low": range(0, 40, 4), "high": range(20, 100, 9)},
        ),
        (
            "remainder",
            "equal to $r modulo $m",
            "$it % $m == $r",
            {"m": range(3, 12), "r": range(11)},
        ),
        (
            "either_divides",
            "divisible by exactly one of $a and $b",
            "($it % $a == 0) != ($it % $b == 0)",
            {"a": range(2, 9), "b": range(3, 13)},
        ),
    )
)
TEXT_TO_TEXT = tuple(
    _part(name, "text", "text", says, code, **space)
    for name, says, code, space in (
        (
            "wrap",
            "put '$c' before $it and '$d' after it",
            "'$c' + $it + '$d'",
            {"c": _SOME_MARKS, "d": _SOME_MARKS},
        ),
        (
            "repeat",
            "repeat $it with '$c' after it $k times",
            "($it + '$c') * $k",
            {"c": _SOME_MARKS, "k": range(2, 6)},
        ),
        (
            "replace",
            "replace each '$c' in $it by '$d'",
            "$it.replace('$c', '$d')",
            {"c": "abcdefghijklmnop", "d": "qrstuv#*"},
        ),
        (
            "pad",
            "pad $it on the left with '$c' to length $k",
            "$it.rjust($k, '$c')",
            {"c": _SOME_MARKS, "k": range(5, 12)},
        ),
        (
            "backwards",
            "reverse $it and put $k times '$c' after it",
            "$it[::-1] + '$c' * $k",
            {"c": _SOME_MARKS, "k": range(1, 6)},
        ),
        (
            "capitals",
            "write the first $k letters of $it in capitals and add '$c'",
            "$it[:$k].upper() + $it[$k:] + '$c'",
            {"k": range(1, 7), "c": _SOME_MARKS},
        ),
        (
            "first_chars",
            "cut $it after $k characters and add '$c'",
            "$it[:$k] + '$c'",
            {"k": range(2, 9), "c": _SOME_MARKS},
        ),
        (
            "mask",
            "replace all but the first $k characters of $it by '$c'",
            "$it[:$k] + '$c' * (len($it) - $k)",
            {"k": range(1, 8), "c": _SOME_MARKS},
        ),
        (
            "shift",
            "shift the letters a-z of $it by $k and turn all else into '$c'",
            "''.join([chr((ord(c) - 97 + $k) % 26 + 97) if 'a' <= c <= 'z' else '$c' "
            "for c in $it])",
            {"k": range(1, 13), "c": "#*-+_"},
        ),
    )
)
LIST_TO_LIST = tuple(
    _part(name, "list", "list", says, code, **space)
    for name, says, code, space in (
        ("add_each", "add $a to each item of $it", "[x + $a for x in $it]", {"a": range(1, 50)}),
        (
            "without",
            "remove every $a and $b from $it",
            "[x for x in $it if x != $a and x != $b]",
            {"a": range(9), "b": range(9, 16), "may_empty": True},
        ),
        (
            "steps_between",
            "list the differences of neighbours in $it, times $a",
            "[(y - x) * $a for x, y in zip($it, $it[1:])]",
            {"a": range(2, 40), "may_empty": True},
        ),
        (
            "distinct",
            "drop repeats from $it and add $a to what is left",
            "[x + $a for x in dict.fromkeys($it)]",
            {"a": range(1, 50)},
        ),
        (
            "intersperse",
            "put $a between all neighbours in $it",
            "[y for x in $it for y in [$a, x]][1:]",
            {"a": range(50)},
        ),
        (
            "highest_yet",
            "list the highest number so far at each item of $it, from $a",
            "[max([$a] + $it[:i + 1]) for i in range(len($it))]",
            {"a": range(5, 50)},
        ),
        (
            "filter_scale",
            "keep the numbers in $it $op_words $a, times $b",
            "[x * $b for x in $it if x $op $a]",
            {"op": ("<", ">"), "a": range(4, 50, 6), "b": range(2, 8), "may_empty": True},
        ),
        (
            "running_total",
            "list the running totals of $it from $a, modulo $m",
            "[($a + sum($it[:i + 1])) % $m for i in range(len($it))]",
            {"a": range(1, 9), "m": range(11, 50, 6)},
        ),
        (
            "window_sums",
            "sum every $k neighbouring numbers in $it, each plus $b",
            "[sum($it[i:i + $k]) + $b for i in range(len($it) - $k + 1)]",
            {"k": range(2, 4), "b": range(1, 30), "may_empty": True},
        ),
        (
            "chunk_sums",
            "cut $it into chunks of $k and list each sum plus $b",
            "[sum($it[i:i + $k]) + $b for i in range(0, len($it), $k)]",
            {"k": range(2, 5), "b": range(1, 20)},
        ),
    )
)
LIST_TO_NUMBER = tuple(
    _part(name, "list", "number", says, code, **space)
    for name, says, code, space in (
        (
            "sum_beyond",
            "add up the numbers in $it $op_words $a",
            "sum([x for x in $it if x $op $a])",
            {"op": ("<", ">"), "a": range(10, 60, 2)},
        ),
        (
            "spread",
            "take the largest minus the smallest of $it, times $a",
            "(max($it) - min($it)) * $a",
            {"a": range(2, 40), "never_empty": True},
        ),
        (
            "count_matching",
            "count the numbers in $it $op_words $a or divisible by $b",
            "len([x for x in $it if x $op $a or x % $b == 0])",
            {"op": ("<", ">"), "a": range(11, 50, 6), "b": range(2, 8)},
        ),
        (
            "farthest",
            "find the largest distance from $a in $it, times $b",
            "max([abs(x - $a) for x in $it]) * $b",
            {"a": range(10, 60, 5), "b": range(2, 9), "never_empty": True},
        ),
    )
)
PARTS = (*NUMBER_TO_NUMBER, *NUMBER_TO_TRUTH, *TEXT_TO_TEXT, *LIST_TO_LIST, *LIST_TO_NUMBER)
"""Every part; the tuples above sort them by what they take and give."""
