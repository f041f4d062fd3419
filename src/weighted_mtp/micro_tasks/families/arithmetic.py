"""Families over one number."""

from __future__ import annotations

from random import Random
from typing import Any

from weighted_mtp.micro_tasks.family import Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import SIGN, SIGN_WORDS, numbers, single

NAMES = ("ding", "pop", "foo", "bar", "tick", "tock", "red", "blue")
PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)


def _remainder_inputs(rng: Random, p: Params) -> list[Arguments]:
    hit = p["m"] * rng.randint(2, 9) + p["r"]
    return single([p["r"], hit, hit + 1, p["m"] * rng.randint(1, 5), hit - 1, 2 * hit + 1])


def _clamp_inputs(rng: Random, p: Params) -> list[Arguments]:
    low, high = p["low"], p["high"]
    inside = rng.randint(low, high)
    return single([low, high, low - 1, high + 1, inside, rng.choice([-5, high + 20])])


def _names_inputs(rng: Random, p: Params) -> list[Arguments]:
    a, b = p["a"], p["b"]
    neither = next(n for n in range(rng.randint(5, 40), 200) if n % a and n % b)
    both = a * b
    only_a = next(n for n in range(a * rng.randint(2, 9), 9 * both, a) if n % b)
    only_b = next(n for n in range(b * rng.randint(2, 9), 9 * both, b) if n % a)
    return single([neither, both, only_a, only_b, both + 1])


def _name_of(x: int, a: int, b: int, u: str, v: str) -> Any:
    return u if x % a == 0 else v if x % b == 0 else x


FAMILIES = (
    Family(
        name="linear",
        difficulty=1,
        entry_points=("linear", "scale", "affine"),
        arguments="x",
        space={"a": range(2, 51), "op": ("+", "-"), "b": range(1, 100)},
        phrases={"op": SIGN_WORDS},
        wordings=(
            "Write a function $f that returns x times $a $op_words $b.",
            "Define $f, which returns $a times x $op_words $b.",
            "Implement $f: multiply x by $a, $op_words $b.",
            "Given a number x, $f should return $a times x $op_words $b.",
            "What is x times $a $op_words $b? Let $f return it.",
        ),
        styles={
            "direct": "def $f(x):\n    return x * $a $op $b",
            "named": "def $f(x):\n    y = x * $a\n    return y $op $b",
            "in_place": "def $f(x):\n    x *= $a\n    x $op= $b\n    return x",
        },
        inputs=lambda rng, p: single([0, 1, -3, *numbers(rng, 2, 4, 60)]),
        expected=lambda x, a, op, b: SIGN[op](a * x, b),
    ),
    Family(
        name="remainder",
        difficulty=2,
        entry_points=("check", "matches", "fits"),
        arguments="x",
        space={"m": range(3, 41), "r": range(40)},
        valid=lambda m, r: r < m,
        wordings=(
            "Write a function $f that says whether x divided by $m leaves $r.",
            "Define $f: True if x modulo $m is $r, else False.",
            "Implement $f to test that x has remainder $r modulo $m.",
            "Does x leave $r when divided by $m? Answer True or False with $f.",
            "I need $f to check whether x % $m equals $r.",
        ),
        styles={
            "direct": "def $f(x):\n    return x % $m == $r",
            "branch": "def $f(x):\n    if x % $m == $r:\n        return True\n    return False",
            "difference": "def $f(x):\n    return (x - $r) % $m == 0",
        },
        inputs=_remainder_inputs,
        expected=lambda x, m, r: x % m == r,
    ),
    Family(
        name="clamp",
        difficulty=2,
        entry_points=("clamp", "limit", "bounded"),
        arguments="x",
        space={"low": range(60), "high": range(100)},
        valid=lambda low, high: low + 2 < high,
        wordings=(
            "Write a function $f that limits x to the range $low to $high.",
            "Define $f: return x, but at least $low and at most $high.",
            "Implement $f to clamp x between $low and $high.",
            "I need $f to keep x between $low and $high: smaller becomes $low, larger $high.",
            "Given x, $f should return it, or $low if it is less, or $high if it is more.",
        ),
        styles={
            "nested": "def $f(x):\n    return max($low, min(x, $high))",
            "branches": "def $f(x):\n    if x < $low:\n        return $low\n"
            "    if x > $high:\n        return $high\n    return x",
            "middle": "def $f(x):\n    return sorted([$low, x, $high])[1]",
        },
        inputs=_clamp_inputs,
        expected=lambda x, low, high: max(low, min(x, high)),
    ),
    Family(
        name="power_mod",
        difficulty=5,
        entry_points=("power", "mod_power", "residue"),
        arguments="x",
        space={"k": range(2, 31), "m": PRIMES},
        valid=lambda k, m: k < m - 1,  # then no two powers agree everywhere
        wordings=(
            "Write a function $f that returns x to the power $k modulo $m.",
            "Define $f: raise x to $k and take the result modulo $m.",
            "Implement $f to compute the remainder of x ** $k by $m.",
            "I need $f to multiply x by itself to the power $k and return the rest by $m.",
            "What is x to the $k, modulo $m? Write $f to return it.",
        ),
        styles={
            "operators": "def $f(x):\n    return x ** $k % $m",
            "pow": "def $f(x):\n    return pow(x, $k, $m)",
            "loop": "def $f(x):\n    y = 1\n    for _ in range($k):\n        y = y * x % $m\n"
            "    return y",
        },
        inputs=lambda rng, p: single([0, 1, *numbers(rng, 3, 2, 60)]),
        expected=lambda x, k, m: pow(x, k, m),
    ),
    Family(
        name="polynomial",
        difficulty=6,
        entry_points=("poly", "quadratic", "curve"),
        arguments="x",
        space={"a": range(2, 13), "b": range(2, 21), "c": range(1, 41)},
        wordings=(
            "Write a function $f that returns $a times x squared plus $b times x plus $c.",
            "Define $f: the value of $a x^2 + $b x + $c.",
            "Implement $f, the polynomial with coefficients $a, $b and $c.",
            "I need $f to evaluate $a x^2 + $b x + $c at x.",
            "Given x, $f should return x squared times $a, plus x times $b, plus $c.",
        ),
        styles={
            "direct": "def $f(x):\n    return $a * x ** 2 + $b * x + $c",
            "horner": "def $f(x):\n    return ($a * x + $b) * x + $c",
            "loop": "def $f(x):\n    y = 0\n    for k in [$a, $b, $c]:\n        y = y * x + k\n"
            "    return y",
        },
        inputs=lambda rng, p: single([0, 1, -2, *numbers(rng, 2, 3, 30)]),
        expected=lambda x, a, b, c: a * x * x + b * x + c,
    ),
    Family(
        name="names",
        difficulty=6,
        entry_points=("label", "name_of", "call_out"),
        arguments="x",
        space={"a": range(2, 13), "u": NAMES, "b": range(2, 13), "v": NAMES},
        valid=lambda a, u, b, v: u != v and a % b != 0 and b % a != 0,
        wordings=(
            "Write a function $f: '$u' if $a divides x, else '$v' if $b does, else x.",
            "Define $f to return '$u' for multiples of $a, else '$v' for those of $b, else x.",
            "Implement $f: multiples of $a give '$u', else those of $b give '$v', else x.",
            "I need $f to say '$u' if x is a multiple of $a, '$v' if only of $b, else give x.",
            "Given x, $f returns '$u' when $a divides it, else '$v' when $b does, else x itself.",
        ),
        styles={
            "returns": "def $f(x):\n    if x % $a == 0:\n        return '$u'\n"
            "    if x % $b == 0:\n        return '$v'\n    return x",
            "chain": "def $f(x):\n    if x % $a == 0:\n        y = '$u'\n"
            "    elif x % $b == 0:\n        y = '$v'\n    else:\n        y = x\n    return y",
            "expression": "def $f(x):\n    return '$u' if x % $a == 0 else "
            "'$v' if x % $b == 0 else x",
        },
        inputs=_names_inputs,
        expected=_name_of,
    ),
)
"""Families over one number."""
