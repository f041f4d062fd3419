"""Programs whose verdict is known, of many styles; and what a forged answer may look like."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest

from weighted_mtp.core.types import Program, Verdict
from weighted_mtp.evaluation.sandbox.host import Sandbox

_PATH = Path(__file__).parents[2] / "benchmarks" / "judge_programs.py"
_SPEC = importlib.util.spec_from_file_location("judge_programs", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
programs = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(programs)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(timeout=5.0) as judge:
        yield judge


def judge(sandbox: Sandbox, cases: list) -> dict[str, Verdict]:
    judged = sandbox(
        [
            Program(source, (tests,))
            if isinstance(tests, str)
            else Program(source, stdin=tests[0], expected_stdout=tests[1])
            for _, source, tests in cases
        ]
    )
    return {case[0]: verdict for case, verdict in zip(cases, judged, strict=True)}


def test_right_programs_pass(sandbox):
    verdicts = judge(sandbox, programs.RIGHT)
    assert {name: v for name, v in verdicts.items() if not v.passed} == {}
    assert len(verdicts) == 100


def test_wrong_programs_fail(sandbox):
    slow = {"endless", "print: says it is done and stays"}  # the hostile ones try these
    verdicts = judge(sandbox, [case for case in programs.WRONG if case[0] not in slow])
    assert [name for name, v in verdicts.items() if v.passed] == []
    assert len(verdicts) == 58


# --- answers that no program's process gives by itself -------------------------------------------

FORGE = """
import gc
def forge(value, also={{}}):
    for thing in gc.get_objects():
        if type(thing).__name__ == 'ProgramSide':
            side = type(thing)
            honest = side.answer
            def answer(self, request):
                if request['do'] in {{'call', 'special', 'equal', 'claim', 'getitem'}}:
                    return {{'value': value, **also}}
                return honest(self, request)
            side.answer = answer
def f(x): return 0
forge({value})
"""
CLASS = {"class": ["int", "int", "builtins"], "bases": [], "special": [], "own": [], "doc": None}
LIE = ["mine", 9001, {"of": ["mine", 9003, CLASS]}]
FORGED = {
    "true": True,
    "an unknown number": ["mine", 77],
    "an object of the tests": ["yours", 2],
    "a class of the tests": ["yours", 0],
    "a container of another number": ["same", 2],
    "a class whose == is a type": ["mine", 9001, {"of": ["mine", 9003, CLASS | {
        "static": {"__eq__": ["type", "bool"]}, "own": ["__eq__", "_remote_side"]}]}],
    "a class with special methods": ["mine", 9001, {"of": ["mine", 9003, CLASS | {
        "special": ["__eq__", "__class__", "__getattribute__", "__del__"]}]}],
    "an int that is derived from bool": ["mine", 9001, {"of": ["mine", 9003, CLASS | {
        "bases": [["type", "bool"]]}], "content": True}],
    "an object of a class of Python's": ["mine", 9001, {"of": ["type", "slice"], "content": 1}],
    "a class derived from type": ["mine", 9003, CLASS | {"bases": [["type", "type"]]}],
    "a function of Python's": ["standard", "os", "_exit"],
    "a module outside the library": ["module", "weighted_mtp.evaluation.sandbox.testing"],
    "a module's part": ["module", "unittest.__main__"],
    "an exception as a value": ["error", ["SystemExit"], [0], {}],
    "a list with a hole": ["list", 9001, [], None],
    "a set of lists": ["set", 9001, [[["list", 9003, [[]], None]]], None],
    "a dictionary with odd halves": ["dict", 9001, [[1], []], None],
    "an object of lists": ["mine", 9001, {"of": ["mine", 9003, CLASS | {
        "bases": [["type", "list"]]}], "content": ["list", 9001, [[1]], None]}],
    "nonsense": [[], [[]]],
    "itself": LIE,
}  # fmt: skip
TESTS = "def own(x): return 9\nassert f(own) == 9\nassert f(4) in [16] and abs(f(5) - 25) < 1e-6"


@pytest.mark.parametrize("name", FORGED)
def test_no_forged_answer_passes(sandbox, name):
    source = FORGE.format(value=repr(FORGED[name]))
    verdict = judge(sandbox, [(name, source, TESTS)])[name]
    assert not verdict.passed
    assert verdict.status in {"failed", "error", "exited"}


@pytest.mark.parametrize(
    "also",
    [
        {"changed": [[2, [[9]]]]},
        {"changed": [["2", 1]]},
        {"changed": 5},
        {"raised": ["X"], "text": "", "error": ["type", "int"]},
        {"raised": ["StopIteration"], "text": "", "error": ["error", ["StopIteration"], [], {}]},
        {"printed": [1, 2]},
        {"do": "call", "args": [["yours", 2], 1], "kwargs": {}},
    ],
    ids=str,
)
def test_no_forged_addition_passes(sandbox, also):
    source = FORGE.format(value="None, " + repr(also))
    verdict = judge(sandbox, [("", source, TESTS)])[""]
    assert not verdict.passed


ASK = """
def f(given):
    side = (given if isinstance(given, type) else type(given))._remote_side
    found = []
    for do, *args in {asked}:
        try:
            found.append(side.ask(do, given if args[0] != '__call__' else '__call__', *args[1:]))
        except BaseException as error:
            found.append(type(error).__name__)
    return sorted(set(map(str, found)))
"""


@pytest.mark.parametrize("given", ["own", "Own()", "Own", "Own().method", "open_file", "mock"])
def test_what_the_tests_hand_over_leads_nowhere(sandbox, given):
    """Every way to the globals, the code or the classes of the tests is refused."""
    names = [
        "__globals__", "__closure__", "__builtins__", "__self__", "__func__", "__class__",
        "__dict__", "__init__", "__subclasses__", "__reduce_ex__", "__wrapped__", "__code__",
        "__getattribute__", "__mro__", "_mock_children", "__traceback__",
    ]  # fmt: skip
    asked = [("getattr", "", name) for name in names if name != "__code__"]
    asked += [("setattr", "", name, 1) for name in ("__class__", "__dict__", "__code__")]
    asked += [("deepcopy", ""), ("copy", ""), ("name", "secret"), ("exec", "")]
    tests = (
        "import io\nfrom unittest import mock as m\nsecret = 81726354\nmock = m.Mock()\n"
        "open_file = io.StringIO('a')\ndef own(x): return secret\n"
        "class Own:\n    def method(self): return secret\n"
        f"found = f({given})\nassert False, found"
    )
    source = ASK.format(asked=json.dumps(asked))
    verdict = judge(sandbox, [("", source, tests)])[""]
    assert verdict.status == "failed"
    found = ast.literal_eval(verdict.detail.partition("AssertionError: ")[2].partition(" in: ")[0])
    assert set(found) <= {"AttributeError", "TypeError"}


def test_a_function_of_the_tests_shows_its_parameters_only(sandbox):
    source = "def f(g):\n    return [n for n in ('co_consts', 'co_code', 'co_names', 'replace') if "
    source += "hasattr(g.__code__, n)] + [g.__code__.co_argcount]"
    tests = "def own(a, b): return 81726354\nassert f(own) == [2]"
    assert judge(sandbox, [("", source, tests)])[""] == Verdict(True, "passed")
