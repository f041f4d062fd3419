"""Families over strings and digits."""

from __future__ import annotations

from random import Random

from weighted_mtp.micro_tasks.family import Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import (
    COMPARE,
    COMPARE_WORDS,
    LETTERS,
    numbers,
    single,
    text,
)

MARKS = "#*-+=_.,:;!?@%&/|~^<>0123456789"


def _letters_inputs(rng: Random, p: Params) -> list[Arguments]:
    """Strings with and without the letters that are parameters."""
    special = "".join(str(value) for value in p.values())
    mixed = [text(rng, n, special * 3 + text(rng, 5)) for n in (3, 5, 7)]
    return single(["", special, *mixed, special[0] * 2 + text(rng, 3)])


def _words_inputs(rng: Random, p: Params) -> list[Arguments]:
    shorter, k, longer = p["k"] - 1, p["k"], p["k"] + 1
    cases = [[shorter, shorter, k, longer, longer], [shorter, shorter, longer, longer + 1]]
    cases += [[k], [shorter, k, longer], [shorter] * 2 + [rng.randint(1, 9)]]
    return single([" ".join(text(rng, n) for n in rng.sample(c, len(c))) for c in cases])


def _shift(s: str, k: int, c: str) -> str:
    return "".join(LETTERS[(LETTERS.index(x) + k) % 26] if x in LETTERS else c for x in s)


FAMILIES = (
    Family(
        name="repeat",
        difficulty=1,
        entry_points=("repeat", "again", "echo"),
        arguments="s",
        space={"c": MARKS, "k": range(2, 21)},
        wordings=(
            "Write a function $f that returns s followed by '$c', $k times over.",
            "Define $f: add '$c' to s and repeat the result $k times.",
            "Implement $f to repeat s and a '$c' after it $k times.",
            "I need $f to write s and a '$c', $k times in a row.",
            "Given s, $f should return s + '$c' repeated $k times.",
        ),
        styles={
            "multiply": "def $f(s):\n    return (s + '$c') * $k",
            "loop": "def $f(s):\n    out = ''\n    for _ in range($k):\n        out += s + '$c'\n"
            "    return out",
            "join": "def $f(s):\n    return ''.join([s + '$c'] * $k)",
        },
        inputs=lambda rng, p: single(["", *(text(rng, n) for n in (1, 2, 3))]),
        expected=lambda s, c, k: (s + c) * k,
    ),
    Family(
        name="replace",
        difficulty=2,
        entry_points=("replace", "swap_char", "exchange"),
        arguments="s",
        space={"c": LETTERS, "d": LETTERS + MARKS},
        valid=lambda c, d: c != d,
        wordings=(
            "Write a function $f that returns s with every '$c' replaced by '$d'.",
            "Define $f: change each '$c' in s to '$d'.",
            "Implement $f to put '$d' wherever s has '$c'.",
            "I need $f to swap each '$c' of s for '$d'.",
            "Given s, $f should return it with '$d' in place of '$c'.",
        ),
        styles={
            "replace": "def $f(s):\n    return s.replace('$c', '$d')",
            "join": "def $f(s):\n    return ''.join(['$d' if c == '$c' else c for c in s])",
            "split": "def $f(s):\n    return '$d'.join(s.split('$c'))",
        },
        inputs=_letters_inputs,
        expected=lambda s, c, d: s.replace(c, d),
    ),
    Family(
        name="pad",
        difficulty=3,
        entry_points=("pad", "fill", "align"),
        arguments="s",
        space={"c": MARKS, "k": range(4, 41)},
        wordings=(
            "Write a function $f that puts '$c' before s until it has $k characters.",
            "Define $f: pad s on the left with '$c' to length $k.",
            "Implement $f to right-align s in width $k, filled with '$c'.",
            "I need $f to fill s with '$c' on the left until it is $k long.",
            "Given s, $f should make it $k wide by putting '$c' in front.",
        ),
        styles={
            "method": "def $f(s):\n    return s.rjust($k, '$c')",
            "multiply": "def $f(s):\n    return '$c' * ($k - len(s)) + s",
            "loop": "def $f(s):\n    for _ in range($k - len(s)):\n        s = '$c' + s\n"
            "    return s",
        },
        inputs=lambda rng, p: single(
            [text(rng, n) for n in (0, 2, p["k"] - 1, p["k"], p["k"] + 1)]
        ),
        expected=lambda s, c, k: s.rjust(k, c),
    ),
    Family(
        name="count_letters",
        difficulty=3,
        entry_points=("count", "tally", "how_many"),
        arguments="s",
        space={"a": LETTERS, "b": LETTERS, "c": LETTERS},
        valid=lambda a, b, c: a < b < c,
        wordings=(
            "Write a function $f that counts the letters $a, $b and $c in s.",
            "Define $f: how many characters of s are $a, $b or $c.",
            "Implement $f to return how often $a, $b and $c occur in s together.",
            "How many letters of s are $a, $b or $c? Write $f to tell.",
            "I need $f to count each $a, $b and $c in s and return the total.",
        ),
        styles={
            "sum": "def $f(s):\n    return sum([c in '$a$b$c' for c in s])",
            "loop": "def $f(s):\n    n = 0\n    for c in s:\n        if c in '$a$b$c':\n"
            "            n += 1\n    return n",
            "method": "def $f(s):\n    return s.count('$a') + s.count('$b') + s.count('$c')",
        },
        inputs=_letters_inputs,
        expected=lambda s, a, b, c: sum(x in (a, b, c) for x in s),
    ),
    Family(
        name="join_words",
        difficulty=5,
        entry_points=("join_words", "pick_words", "select"),
        arguments="s",
        space={"op": ("<", ">"), "k": range(2, 10), "c": MARKS},
        phrases={"op": COMPARE_WORDS},
        wordings=(
            "Write a function $f that joins by '$c' the words of s with length $op_words $k.",
            "Define $f: the words of s whose length is $op_words $k, joined by '$c'.",
            "Implement $f to put '$c' between the words of s of length $op_words $k.",
            "I need $f to keep words of s of length $op_words $k and join them with '$c'.",
            "Given s, $f should link by '$c' all words whose length is $op_words $k.",
        ),
        styles={
            "comprehension": "def $f(s):\n"
            "    return '$c'.join([w for w in s.split() if len(w) $op $k])",
            "loop": "def $f(s):\n    out = []\n    for w in s.split():\n"
            "        if len(w) $op $k:\n            out.append(w)\n    return '$c'.join(out)",
            "filter": "def $f(s):\n"
            "    return '$c'.join(filter(lambda w: len(w) $op $k, s.split()))",
        },
        inputs=_words_inputs,
        expected=lambda s, op, k, c: c.join(w for w in s.split() if COMPARE[op](len(w), k)),
    ),
    Family(
        name="digit_sum",
        difficulty=6,
        entry_points=("digit_sum", "digits", "add_digits"),
        arguments="n",
        space={"a": range(2, 31), "b": range(1, 61)},
        wordings=(
            "Write a function $f that returns the digit sum of n times $a plus $b.",
            "Define $f: add the digits of n, multiply by $a, add $b.",
            "Implement $f to return $a times the sum of n's digits plus $b.",
            "What do the digits of n add up to? Let $f return that times $a plus $b.",
            "I need $f to sum n's digits, multiply the sum by $a and add $b.",
        ),
        styles={
            "string": "def $f(n):\n    return sum([int(d) for d in str(n)]) * $a + $b",
            "while": "def $f(n):\n    t = 0\n    while n:\n        t += n % 10\n"
            "        n //= 10\n    return t * $a + $b",
            "loop": "def $f(n):\n    t = $b\n    for d in str(n):\n        t += int(d) * $a\n"
            "    return t",
        },
        inputs=lambda rng, p: single([0, 7, *numbers(rng, 2, 10, 99), rng.randint(100, 9999)]),
        expected=lambda n, a, b: sum(map(int, str(n))) * a + b,
    ),
    Family(
        name="shift",
        difficulty=8,
        entry_points=("shift", "encode", "cipher"),
        arguments="s",
        space={"k": range(1, 26), "c": MARKS},
        wordings=(
            "Write a function $f: shift each letter a-z of s by $k, others become '$c'.",
            "Define $f: move letters of s $k on in the alphabet, all else gives '$c'.",
            "Implement $f, a Caesar cipher by $k that turns all but a-z into '$c'.",
            "I need $f to encode s: letters a-z move $k places on, anything else becomes '$c'.",
            "Given s, $f should rotate a-z by $k and write '$c' for all other characters.",
        ),
        styles={
            "join": "def $f(s):\n    return ''.join([chr((ord(c) - 97 + $k) % 26 + 97) "
            "if 'a' <= c <= 'z' else '$c' for c in s])",
            "loop": "def $f(s):\n    out = ''\n    for c in s:\n        if 'a' <= c <= 'z':\n"
            "            out += chr((ord(c) - 97 + $k) % 26 + 97)\n        else:\n"
            "            out += '$c'\n    return out",
            "alphabet": "def $f(s):\n    abc = 'abcdefghijklmnopqrstuvwxyz'\n"
            "    return ''.join([abc[(abc.find(c) + $k) % 26] if c in abc else '$c' for c in s])",
        },
        inputs=lambda rng, p: single(
            ["", "az", text(rng, 4), text(rng, 5, LETTERS + " AZ{`"), "A b{`" + text(rng, 2)]
        ),
        expected=_shift,
    ),
)
"""Families over strings and digits."""
