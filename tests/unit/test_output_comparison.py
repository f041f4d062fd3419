"""What counts as the expected output: the rule of CodeContests' checker, stricter with integers."""

import random
import time
from decimal import Decimal

import pytest

from weighted_mtp.evaluation.sandbox.watch import RELATIVE, TOLERANCE, compare

BIG = 10**20

SAME = [
    ("", ""),
    ("1\n", "1"),
    ("1\r\n2\r\n", "1\n2\n"),
    (" 1\t2 \n\n3", "1 2 3\n"),
    ("1 2 3", "1\n2\n3"),
    ("Yes", "YES"),
    ("é 漢", "é 漢"),
    ("0.3333333333333333", "0.333333"),
    ("0.333333", "0.3333333333333333"),
    ("1.0", "1"),
    ("1", "1.000"),
    ("0.99999999", "1"),
    ("1e5", "100000"),
    ("1E+05", "100000.0"),
    ("100000", "1e5"),
    ("-0.0", "0"),
    ("-0", "0"),
    ("0", "-0.000001"),
    ("+5", "5"),
    (".5", "0.5"),
    ("5.", "5"),
    ("1234567890123.4567", "1234567890123.45678"),
    ("1e20", str(BIG)),
    (f"{BIG}.0", str(BIG)),
    (str(BIG), "1e20"),
    ("9" * 100_000, "9" * 100_000),
    ("nan", "NaN"),
    ("inf -inf", "INF -Inf"),
    ("1e400", "1e400"),
    ("x0.5", "x0.5"),
]
DIFFERENT = [
    ("1", ""),
    ("", "0"),
    ("1 2", "1"),
    ("1", "1 2"),
    ("12", "1 2"),
    ("2", "1"),
    ("é", "É"),
    ("0.33334", "0.3333"),
    ("0.3", "0.333333"),
    ("1.0001", "1"),
    ("100001", "1e5"),
    (str(BIG + 1), str(BIG)),
    (str(BIG), str(BIG + 1)),
    ("1e20", str(BIG + 1)),
    (str(2**53 + 1), f"{2**53}.0"),
    ("9" * 100_000, "9" * 99_999 + "8"),
    ("010", "10"),
    ("0001", "1"),
    ("1_000", "1000"),
    ("0x10", "16"),
    ("\u0661", "1"),
    ("nan", "0"),
    ("0", "nan"),
    ("inf", "1e999"),
    ("1e999", "1e998"),
    ("inf", "-inf"),
    ("-1", "1"),
    ("1,5", "1.5"),
    ("1e5x", "100000"),
    ("x0.50", "x0.5"),
    ("1e99999999999999999999", "1"),
    ("1e-99999999999999999999", "1"),
    ("10000000000.5", "10000000000"),
]


@pytest.mark.parametrize(("printed", "expected"), SAME, ids=lambda text: f"{text!r:.20}")
def test_the_same_output(printed, expected):
    assert compare(printed.encode(), expected, True) == ("passed", "")


@pytest.mark.parametrize(("printed", "expected"), DIFFERENT, ids=lambda text: f"{text!r:.20}")
def test_another_output(printed, expected):
    status, detail = compare(printed.encode(), expected, True)
    assert status == "failed"
    assert detail.startswith("line 1: printed ")
    assert len(detail) < 300


def test_numbers_are_the_same_within_the_tolerance():
    """Against exact arithmetic."""
    rng = random.Random(0)
    for _ in range(3000):
        expected = rng.choice(
            [0.0, 1.0, -1.0, rng.gauss(0, 1), rng.gauss(0, 1e6), 10 ** rng.uniform(-9, 12)]
        )
        printed = expected + rng.choice([0.9, 1.1]) * rng.choice([1, -1]) * TOLERANCE
        a, b = f"{printed:.8f}", f"{expected:.8f}"
        difference = abs(Decimal(a) - Decimal(b))
        bound = max(Decimal(TOLERANCE), Decimal(RELATIVE) * abs(Decimal(b)))
        assert (compare(a.encode(), b, True)[0] == "passed") == (difference <= bound), (a, b)


def test_the_first_difference_is_named():
    detail = compare(b"1 2\n3 4\n", "1 2\n3 5\n6", True)[1]
    assert detail == "line 2: printed '4', expected '5'"
    assert compare(b"1\n\n2", "1", True)[1] == "line 3: printed '2', expected nothing"
    assert compare(b"\xff", "\ufffd", True)[0] == "failed"


def test_output_that_is_not_all_there_is_never_right():
    assert compare(b"1", "1", False)[0] == "failed"


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("7 " * 1_000_000, "7\n" * 1_000_000),
        ("0.5 " * 100_000, "0.500 " * 100_000),
        ("9" * 8_000_000, "9" * 7_999_999 + "8"),
        ("1." + "9" * 4_990, "1." + "9" * 4_989),
        (" " * 8_000_000, "x"),
        ("1e" + "9" * 4_000, "1e5"),
    ],
    ids=["words", "numbers", "an integer", "a fraction", "spaces", "an exponent"],
)
def test_long_outputs_take_no_long_time(printed, expected):
    start = time.monotonic()
    compare(printed.encode(), expected, True)
    assert time.monotonic() - start < 15  # 0.6 s on an idle core
