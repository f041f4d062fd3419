"""Arithmetic of polynomials in F₇[X]/(X⁵) (Gloeckle et al. 2024, arXiv 2404.19737).

An expression has m operations: negation, addition, multiplication, composition, drawn alike. It is
written in prefix notation, a polynomial as its five coefficients, the constant first. The answer is
the five coefficients of its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from weighted_mtp.micro_tasks.puzzles.puzzle import Puzzle

Polynomial = tuple[int, ...]
MODULUS, DEGREE = 7, 5
NEGATE, ADD, MULTIPLY, COMPOSE, EQUALS = 10, 11, 12, 13, 14
OPERATIONS = (NEGATE, ADD, MULTIPLY, COMPOSE)


@dataclass(frozen=True)
class Polynomials:
    """Expressions of 1 to 8 operations; those of up to 5 are trained on."""

    levels: tuple[str, ...] = ("1", "2", "3", "4", "5", "6", "7", "8")
    trained_levels: int = 5

    def make(self, rng: Random, level: str, held_out: bool) -> Puzzle:
        words, value = expression(rng, int(level))
        return Puzzle((*words, EQUALS), value, {"value": tuple(range(DEGREE))})


def expression(rng: Random, operations: int) -> tuple[list[int], Polynomial]:
    """An expression of so many operations, in symbols, and its value."""
    if operations == 0:
        leaf = tuple(rng.randrange(MODULUS) for _ in range(DEGREE))
        return list(leaf), leaf
    operation = rng.choice(OPERATIONS)
    if operation == NEGATE:
        words, value = expression(rng, operations - 1)
        return [operation, *words], negated(value)
    inside = rng.randrange(operations)
    first, a = expression(rng, inside)
    second, b = expression(rng, operations - 1 - inside)
    act = {ADD: added, MULTIPLY: multiplied, COMPOSE: composed}[operation]
    return [operation, *first, *second], act(a, b)


def negated(a: Polynomial) -> Polynomial:
    """−a."""
    return tuple(-x % MODULUS for x in a)


def added(a: Polynomial, b: Polynomial) -> Polynomial:
    """a + b."""
    return tuple((x + y) % MODULUS for x, y in zip(a, b, strict=True))


def multiplied(a: Polynomial, b: Polynomial) -> Polynomial:
    """a · b without the terms from X⁵ on."""
    out = [0] * DEGREE
    for i, x in enumerate(a):
        for j in range(DEGREE - i):
            out[i + j] += x * b[j]
    return tuple(x % MODULUS for x in out)


def composed(a: Polynomial, b: Polynomial) -> Polynomial:
    """a(b), by Horner's rule, a and b of degree below 5."""
    value: Polynomial = (0,) * DEGREE
    for x in reversed(a):
        value = added(multiplied(value, b), (x, *(0,) * (DEGREE - 1)))
    return value
