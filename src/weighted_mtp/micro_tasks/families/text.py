"""Families over strings: marks, parts, capitals, words."""

from __future__ import annotations

from random import Random

from weighted_mtp.micro_tasks.families.strings import MARKS
from weighted_mtp.micro_tasks.family import Arguments, Family, Params
from weighted_mtp.micro_tasks.inputs import LETTERS, single, text


def _some_text(rng: Random, p: Params) -> list[Arguments]:
    return single(["", *(text(rng, n) for n in (1, 2, 4, rng.randint(5, 8)))])


def _about_k(rng: Random, p: Params) -> list[Arguments]:
    """Texts a little shorter and longer than `k`."""
    k = p["k"]
    return single([text(rng, n) for n in (k, k + 1, k + 3, k - 1, 2 * k + 1)])


def _vowel_inputs(rng: Random, p: Params) -> list[Arguments]:
    mixed = [text(rng, n, "aeiou" + text(rng, 6)) for n in (3, 5, 8)]
    return single(["", rng.choice("aeiou"), *mixed, text(rng, 3, "bcdfgh")])


def _letter_inputs(rng: Random, p: Params) -> list[Arguments]:
    c = p["c"]
    others = LETTERS.replace(c, "")
    found = [text(rng, n, others) + c + text(rng, 3, others + c) for n in (1, 3, 5)]
    return single([c + text(rng, 2), *found, text(rng, 4, others), ""])


def _word_inputs(rng: Random, p: Params) -> list[Arguments]:
    k = p["k"]
    lengths = ([k, k + 1], [k + 2], [1, k + 2, k], [k + 1, k + 1, 2], [k + 3, 1])
    return single([" ".join(text(rng, n) for n in some) for some in lengths])


FAMILIES = (
    Family(
        name="wrap",
        difficulty=1,
        entry_points=("wrap", "enclose", "surround"),
        arguments="s",
        space={"c": MARKS, "d": MARKS},
        wordings=(
            "Write a function $f that puts '$c' before s and '$d' after it.",
            "Define $f: s with '$c' in front and '$d' at the end.",
            "I need $f to wrap s between '$c' and '$d'.",
            "Given a string s, $f should return '$c', then s, then '$d'.",
            "Surround s by '$c' on the left and '$d' on the right; call it $f.",
        ),
        styles={
            "plus": "def $f(s):\n    return '$c' + s + '$d'",
            "named": "def $f(s):\n    out = '$c'\n    out += s\n    return out + '$d'",
            "join": "def $f(s):\n    return ''.join(['$c', s, '$d'])",
        },
        inputs=_some_text,
        expected=lambda s, c, d: c + s + d,
    ),
    Family(
        name="text_length",
        difficulty=1,
        entry_points=("text_length", "size", "width"),
        arguments="s",
        space={"a": range(2, 32), "b": range(1, 31)},
        wordings=(
            "Write a function $f that returns the length of s times $a plus $b.",
            "Define $f: count the characters of s, multiply by $a, add $b.",
            "Each character of s costs $a, plus $b for the whole. Write $f, the cost.",
            "I need $f to return $a for every character of s, plus $b.",
            "How long is s? Let $f return $a times its length plus $b.",
        ),
        styles={
            "len": "def $f(s):\n    return len(s) * $a + $b",
            "loop": "def $f(s):\n    n = $b\n    for c in s:\n        n += $a\n    return n",
            "sum": "def $f(s):\n    return sum([$a for c in s]) + $b",
        },
        inputs=_some_text,
        expected=lambda s, a, b: len(s) * a + b,
    ),
    Family(
        name="backwards",
        difficulty=2,
        entry_points=("backwards", "reverse", "mirror"),
        arguments="s",
        space={"c": MARKS, "k": range(1, 21)},
        wordings=(
            "Write a function $f that reverses s and puts $k times '$c' after it.",
            "Define $f: s read backwards, followed by $k copies of '$c'.",
            "I need $f to turn s round and add '$c' $k times at the end.",
            "Given s, $f should return it in reverse, then '$c' repeated $k times.",
            "Reverse s, append the character '$c' $k times, and call that $f.",
        ),
        styles={
            "slice": "def $f(s):\n    return s[::-1] + '$c' * $k",
            "reversed": "def $f(s):\n    return ''.join(reversed(s)) + '$c' * $k",
            "loop": "def $f(s):\n    out = '$c' * $k\n    for c in s:\n        out = c + out\n"
            "    return out",
        },
        inputs=_some_text,
        expected=lambda s, c, k: s[::-1] + c * k,
    ),
    Family(
        name="capitals",
        difficulty=2,
        entry_points=("capitals", "upper_start", "big_letters"),
        arguments="s",
        space={"k": range(1, 17), "c": MARKS},
        wordings=(
            "Write a function $f that writes the first $k letters of s in capitals and adds '$c'.",
            "Define $f: s with its first $k characters in upper case, followed by '$c'.",
            "I need $f to make the first $k characters of s uppercase and put '$c' at the end.",
            "Given s, $f should capitalise its first $k letters and append '$c'.",
            "Uppercase $k letters at the start of s, keep the rest, end with '$c'; name it $f.",
        ),
        styles={
            "slices": "def $f(s):\n    return s[:$k].upper() + s[$k:] + '$c'",
            "loop": "def $f(s):\n    out = ''\n    for i, c in enumerate(s):\n"
            "        out += c.upper() if i < $k else c\n    return out + '$c'",
            "named": "def $f(s):\n    head = s[:$k]\n    tail = s[$k:]\n"
            "    return head.upper() + tail + '$c'",
        },
        inputs=_about_k,
        expected=lambda s, k, c: s[:k].upper() + s[k:] + c,
    ),
    Family(
        name="first_chars",
        difficulty=2,
        entry_points=("first_chars", "shorten", "prefix"),
        arguments="s",
        space={"k": range(1, 21), "c": MARKS},
        wordings=(
            "Write a function $f that returns the first $k characters of s and then '$c'.",
            "Define $f: cut s after $k characters and add '$c'.",
            "I need $f to shorten s to $k characters at most, with '$c' put after them.",
            "Given s, $f should keep its first $k characters and append '$c'.",
            "Take the first $k characters of s, put '$c' behind them, and call that $f.",
        ),
        styles={
            "slice": "def $f(s):\n    return s[:$k] + '$c'",
            "loop": "def $f(s):\n    out = ''\n    for c in s:\n        if len(out) < $k:\n"
            "            out += c\n    return out + '$c'",
            "join": "def $f(s):\n    return ''.join([c for i, c in enumerate(s) if i < $k]) + '$c'",
        },
        inputs=_about_k,
        expected=lambda s, k, c: s[:k] + c,
    ),
    Family(
        name="mask",
        difficulty=3,
        entry_points=("mask", "hide", "censor"),
        arguments="s",
        space={"k": range(1, 21), "c": MARKS},
        wordings=(
            "Write a function $f that hides all but the first $k characters of s behind '$c'.",
            "Define $f: s with every character after the first $k replaced by '$c'.",
            "I need $f to keep $k characters of s and turn each one after them into '$c'.",
            "Given a password s, $f should show its first $k characters and '$c' for the others.",
            "Mask s: the first $k characters stay, the rest become '$c'. Call it $f.",
        ),
        styles={
            "multiply": "def $f(s):\n    return s[:$k] + '$c' * (len(s) - $k)",
            "join": "def $f(s):\n"
            "    return ''.join([c if i < $k else '$c' for i, c in enumerate(s)])",
            "loop": "def $f(s):\n    out = s[:$k]\n    for _ in s[$k:]:\n        out += '$c'\n"
            "    return out",
        },
        inputs=_about_k,
        expected=lambda s, k, c: s[:k] + c * max(0, len(s) - k),
    ),
    Family(
        name="vowels",
        difficulty=3,
        entry_points=("vowels", "vowel_score", "open_letters"),
        arguments="s",
        space={"a": range(2, 32), "b": range(1, 31)},
        wordings=(
            "Write a function $f that counts the vowels in s, times $a plus $b.",
            "Define $f: $a times the number of vowels (a, e, i, o, u) in s, plus $b.",
            "How many vowels does s have? Return that times $a plus $b from $f.",
            "I need $f to start at $b and add $a for every vowel of s.",
            "Given lowercase s, $f should score $a for each of aeiou in it, plus $b.",
        ),
        styles={
            "sum": "def $f(s):\n    return sum([c in 'aeiou' for c in s]) * $a + $b",
            "loop": "def $f(s):\n    n = $b\n    for c in s:\n        if c in 'aeiou':\n"
            "            n += $a\n    return n",
            "counts": "def $f(s):\n    n = 0\n    for v in 'aeiou':\n        n += s.count(v)\n"
            "    return n * $a + $b",
        },
        inputs=_vowel_inputs,
        expected=lambda s, a, b: sum(x in "aeiou" for x in s) * a + b,
    ),
    Family(
        name="letter_index",
        difficulty=3,
        entry_points=("letter_index", "locate", "where_is"),
        arguments="s",
        space={"c": LETTERS, "a": range(1, 21)},
        wordings=(
            "Write a function $f that returns the index of '$c' in s plus $a, or -1 if missing.",
            "Define $f: $a plus the place of the first '$c' in s (from 0), -1 if there is none.",
            "Where does s first have '$c'? Let $f return that index plus $a, else -1.",
            "I need $f to find '$c' in s and return its index with $a added, or -1.",
            "Given s, $f should return $a plus the first position of '$c', and -1 without one.",
        ),
        styles={
            "index": "def $f(s):\n    return s.index('$c') + $a if '$c' in s else -1",
            "loop": "def $f(s):\n    for i, c in enumerate(s):\n        if c == '$c':\n"
            "            return i + $a\n    return -1",
            "find": "def $f(s):\n    i = s.find('$c')\n    if i < 0:\n        return -1\n"
            "    return i + $a",
        },
        inputs=_letter_inputs,
        expected=lambda s, c, a: s.index(c) + a if c in s else -1,
    ),
    Family(
        name="word_starts",
        difficulty=4,
        entry_points=("word_starts", "initials", "short_words"),
        arguments="s",
        space={"k": range(1, 16), "c": MARKS},
        wordings=(
            "Write a function $f that joins the first $k letters of each word of s by '$c'.",
            "Define $f: cut every word of s to $k letters and join them with '$c'.",
            "I need $f to take $k letters at most of each word in s, with '$c' in between.",
            "Given s, $f should shorten its words to $k characters and put '$c' between them.",
            "Split s into words, keep $k letters of each, join by '$c'; call that $f.",
        ),
        styles={
            "join": "def $f(s):\n    return '$c'.join([w[:$k] for w in s.split()])",
            "loop": "def $f(s):\n    out = []\n    for w in s.split():\n"
            "        out.append(w[:$k])\n    return '$c'.join(out)",
            "string": "def $f(s):\n    out = ''\n    for w in s.split():\n"
            "        out += '$c' + w[:$k]\n    return out[1:]",
        },
        inputs=_word_inputs,
        expected=lambda s, k, c: c.join(w[:k] for w in s.split()),
    ),
)
"""Families over strings: marks, parts, capitals, words."""
