"""Many small programs judged in few runs.

Starting a process costs far more than running one of these programs, so a judge is handed packs:
programs that hold other programs and the tests of each. Those of a pack share one interpreter, so
this is for programs made here, that have no reason to look around; what a model wrote is judged
one by one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from weighted_mtp.core.types import Judge, Program

PACK = 24
_RUN = """
def outcome(source, tests):
    space = {"__name__": "__main__"}
    passed, worst = 0, "p"
    try:
        exec(source, space)
    except Exception:
        return "e0"
    for test in tests:
        try:
            exec(test, space)
            passed += 1
        except AssertionError:
            worst = max(worst, "f", key="pfe".index)
        except Exception:
            worst = "e"
    return worst + str(passed)


def report():
    outcomes = [outcome(source, tests) for source, tests in JOBS]
    assert all(x[0] == "p" for x in outcomes), "saw " + " ".join(outcomes)
"""
_SEEN = re.compile(r"AssertionError: saw ((?:[pfe]\d+ ?)+) in: ")
_STATUS = {"p": "passed", "f": "failed", "e": "error"}


@dataclass(frozen=True)
class Outcome:
    """What running a program against each of its tests showed.

    Attributes:
        status: "passed", "failed" (assertions only), "error", or what the judge said of a program
            that did not get through its tests.
        tests_passed: how many of its tests passed.
    """

    status: str
    tests_passed: int

    @property
    def passed(self) -> bool:
        """Whether every test did."""
        return self.status == "passed"


def run_packed(judge: Judge, programs: Sequence[Program]) -> list[Outcome]:
    """Judge every program; the i-th outcome is the i-th program's."""
    packs = [programs[start : start + PACK] for start in range(0, len(programs), PACK)]
    verdicts = judge([_pack(pack) for pack in packs])
    outcomes: list[Outcome] = []
    for pack, verdict in zip(packs, verdicts, strict=True):
        seen = _SEEN.match(verdict.detail)
        if verdict.passed:
            outcomes += [Outcome("passed", len(program.tests)) for program in pack]
        elif seen is not None:
            outcomes += [Outcome(_STATUS[x[0]], int(x[1:])) for x in seen[1].split()]
        elif len(pack) == 1:
            outcomes.append(Outcome(verdict.status, 0))
        else:  # one of them never ended, or took the others down: each alone
            for program in pack:
                outcomes += run_packed(judge, [program])
    return outcomes


def _pack(programs: Sequence[Program]) -> Program:
    jobs = [(program.source, program.tests) for program in programs]
    return Program(f"{_RUN}\n\nJOBS = {jobs!r}\n", ("report()",))
