"""The sandbox: what programs do, what is said about it, what they leave behind.

Programs that mean harm, or to cheat, have a file of their own: test_sandbox_hostile.py.
"""

import json
import os
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import suppress
from datetime import timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Program, Verdict
from weighted_mtp.evaluation.sandbox import testing as _sandbox_tests
from weighted_mtp.evaluation.sandbox.codec import Codec
from weighted_mtp.evaluation.sandbox.host import Isolation, Sandbox
from weighted_mtp.evaluation.sandbox.wire import GoneError


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(timeout=1.0, workers=2) as judge:
        yield judge


def run(sandbox: Sandbox, source: str, *tests: str) -> Verdict:
    (verdict,) = sandbox([Program(source, tests)])
    return verdict


GOOD = "def f(x):\n    return x + 1\n"


def test_right_program_passes(sandbox):
    verdict = run(sandbox, GOOD, "assert f(1) == 2", "assert f(-1) == 0")
    assert verdict == Verdict(True, "passed")
    assert verdict.seconds > 0


def test_wrong_program_fails_and_names_the_test(sandbox):
    verdict = run(sandbox, GOOD, "assert f(1) == 2", "assert f(1) == 3")
    assert (verdict.passed, verdict.status) == (False, "failed")
    assert "assert f(1) == 3" in verdict.detail


@pytest.mark.parametrize(
    ("source", "tests", "detail"),
    [
        ("def f(x):\n    return x / 0", ["f(1)"], "ZeroDivisionError"),
        ("def f(x:\n", [], "SyntaxError"),
        ("x = 1", ["assert ("], "SyntaxError"),
        ("", ["assert f(1) == 1"], "NameError"),
        ("def f(n):\n    return f(n + 1)", ["f(0)"], "RecursionError"),
        ("a = '\0'", [], "NUL"),
        ("a = '\ud800'", [], "surrogate"),
        ("def f(): return '\ud800'.encode()", ["f()"], "surrogate"),
        ("raise KeyboardInterrupt", [], "KeyboardInterrupt"),
        ("open('/definitely/not/here')", [], "FileNotFoundError"),
    ],
)
def test_errors(sandbox, source, tests, detail):
    verdict = run(sandbox, source, *tests)
    assert (verdict.passed, verdict.status) == (False, "error")
    assert detail in verdict.detail


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "import signal\nfor n in range(1, 65):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n    except Exception: pass\n"
        "while True: pass",
    ],
    ids=["loop", "sleep", "deaf to signals"],
)
def test_endless_programs_time_out(sandbox, source):
    start = time.monotonic()
    verdict = run(sandbox, source)
    assert (verdict.passed, verdict.status) == (False, "timeout")
    assert time.monotonic() - start < 4


@pytest.mark.parametrize(
    "source",
    [
        "x = 'a' * 10**10",
        "xs = []\nwhile True: xs.append(bytes(10**7))",
        "import ctypes\nctypes.string_at(0)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    ],
    ids=["one big allocation", "many allocations", "segfault", "suicide"],
)
def test_killed(sandbox, source):
    verdict = run(sandbox, source)
    assert (verdict.passed, verdict.status) == (False, "killed")


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import os\nos._exit(0)",
        "import os\ndef f(x): os._exit(0)",
        "import os\nfor fd in range(3, 256):\n"
        '    try: os.write(fd, b\'{"token": "", "status": "passed", "detail": ""}\\n\')\n'
        "    except OSError: pass\nos._exit(0)",
    ],
    ids=["exit", "SystemExit", "_exit", "_exit in a test", "forged report"],
)
def test_leaving_early_is_no_pass(sandbox, source):
    verdict = run(sandbox, source, "assert f(1) == 2")
    assert (verdict.passed, verdict.status) == (False, "exited")


def test_moderate_printing_is_no_offence(sandbox):
    assert run(sandbox, "print('x' * 1000000)").passed


def test_runs_as_main_in_a_clean_namespace(sandbox):
    source = "import sys\nassert __name__ == '__main__'\nvalue = 1\n"
    source += "assert sys.modules['__main__'].value == 1\n"
    source += "assert not {'settings', 'judge', 'token', 'run'} & set(globals())"
    assert run(sandbox, source) == Verdict(True, "passed")


def test_environment_is_empty_and_input_ends(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    assert run(sandbox, "import os, sys\nassert not os.environ and sys.stdin.read() == ''").passed


def test_writes_land_in_a_directory_that_vanishes(sandbox):
    source = (
        "import os\nassert os.listdir() == []\nopen('left.txt', 'w').write('x')\n"
        "os.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.symlink('/', 'a/link')\n"
        "os.chmod('a', 0)"
    )
    assert [run(sandbox, source).status for _ in range(4)] == ["passed"] * 4
    for worker in sandbox._alive:
        files = [path.name for path in Path(worker.directory).rglob("*") if path.is_file()]
        assert files == ["in-use"]  # the lock of the directory


def test_programs_share_nothing(sandbox):
    spoil = Program("import builtins, math\nmath.pi = 3\nbuiltins.len = lambda x: 0")
    check = Program("import math\nassert math.pi > 3.1 and len('ab') == 2")
    assert all(verdict.passed for verdict in sandbox([spoil, check] * 4))


def test_killing_the_parent_harms_no_other_program(sandbox):
    killer = Program("import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(0.1)\nassert False")
    good = Program(GOOD, ("assert f(1) == 2",))
    verdicts = sandbox([killer, good, killer, good])
    assert [verdict.passed for verdict in verdicts] == [False, True, False, True]


def test_a_dead_worker_is_replaced():
    with Sandbox(timeout=5.0, workers=1) as sandbox:
        assert run(sandbox, GOOD).passed
        (worker,) = sandbox._alive
        timer = threading.Timer(0.3, worker.process.kill)
        timer.start()
        verdicts = sandbox([Program("import time\ntime.sleep(1)"), Program(GOOD)])
        assert [verdict.status for verdict in verdicts] == ["passed", "passed"]
        assert worker not in sandbox._alive
        assert not os.path.exists(worker.directory)


def test_no_network_where_it_says_so(sandbox):
    if not sandbox.network_isolated:
        pytest.skip("the kernel does not permit it here")
    verdict = run(sandbox, "import socket\nsocket.create_connection(('127.0.0.1', 9), 0.5)")
    assert verdict.status == "error"


def test_isolation_in_words():
    walls = dict.fromkeys(("network", "files", "processes", "privileges", "calls"), True)
    assert str(Isolation(**walls)).startswith("no network; no files but")
    assert "the network is within reach" in str(Isolation(**(walls | {"network": False})))


# --- what tests may do with what the program has -------------------------------------------------


CLASSES = """
import math
from collections import Counter, namedtuple
from fractions import Fraction
Point = namedtuple("Point", "x y")
class Money:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return isinstance(other, Money) and self.n == other.n
    def __lt__(self, other): return self.n < other.n
    def __add__(self, other): return Money(self.n + other.n)
    def __hash__(self): return self.n
    def __repr__(self): return f"Money({self.n})"
    def __len__(self): return self.n
    def __getitem__(self, place): return range(self.n)[place]
    def double(self): self.n *= 2
class Odd(ValueError): pass
def fail(x): raise Odd(f"no {x}")
def evens():
    n = 0
    while True:
        yield n
        n += 2
def push(xs, x, *, more=None):
    xs.append(x)
    if more is not None: more[x] = [x]
def apply(f, *xs): return [f(x) for x in xs]
def map_of(xs): return map(str, xs)
def same(x): return x
total = 0
def count():
    global total
    total += 1
"""


@pytest.mark.parametrize(
    "test",
    [
        "m = Money(2); m.double(); assert m.n == 4 and str(m) == 'Money(4)' and len(m) == 4",
        "assert Money(1) == Money(1) != Money(2) and not Money(1) == 1 and Money(1) < Money(2)",
        "assert Money(1) + Money(2) == Money(3) and isinstance(Money(1), Money)",
        "m = Money(1); m.n = 7; assert same(m) == m and m[2] == 2 and list(m) == list(range(7))",
        "assert Point(1, 2) == (1, 2) and Point(1, 2).y == 2 and isinstance(Point(1, 2), tuple)",
        "xs, d = [3], {}\npush(xs, 4, more=d)\nassert xs == [3, 4] and d == {4: [4]}",
        "rows = [[1], [2]]; row = rows[0]; same(rows); push(row, 5); assert rows == [[1, 5], [2]]",
        "g = evens(); assert [next(g), next(g), next(g)] == [0, 2, 4] and 6 in g",
        "assert sorted(map_of('cab')) == ['a', 'b', 'c'] and set(map_of('aab')) == {'a', 'b'}",
        "assert apply(lambda x: x * 2, 1, 2) == [2, 4] and apply(str, 1) == ['1']",
        "def double(x):\n    return same(x) * 2\nassert apply(double, 1, 2) == [2, 4]",
        "try:\n    fail(3)\n    assert 0\nexcept ValueError as e:\n    assert str(e) == 'no 3'",
        "count(); count(); assert total == 2",
        "assert math.isclose(same(1.0), 1.0) and Counter('aab') == {'a': 2, 'b': 1}",
        "assert Fraction(1, 3) + same(1) == Fraction(4, 3) and same(10**5000) == 10**5000",
        "assert same is same and callable(same) and same.__name__ == 'same'",
        "assert same(float('nan')) != same(float('nan')) and same(-0.0).__repr__() == '-0.0'",
    ],
)
def test_what_tests_may_do(sandbox, test):
    assert run(sandbox, CLASSES, test) == Verdict(True, "passed")


def test_a_builtin_name_may_be_what_is_tested(sandbox):
    source = "def sum(a, b):\n    return a + b"
    assert run(sandbox, source, "assert sum(1, 2) == 3", "assert max(sum(1, 2), 2) == 3").passed


class Plain(Codec):
    """A codec that knows no objects."""

    def refer(self, value):
        raise AssertionError(value)

    mine = theirs = unsay = standard = refer


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(allow_nan=False) | st.decimals(allow_nan=False)
    | st.fractions() | st.dates() | st.datetimes() | st.timedeltas() | st.uuids()
    | st.datetimes(timezones=st.just(timezone(timedelta(hours=3), "there"))) | st.times()
    | st.builds(range, st.integers(), st.integers()) | st.builds(slice, st.integers()),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner)
    | st.sets(st.integers(), max_size=1) | st.lists(inner).map(deque)
    | st.dictionaries(st.text(), st.integers()).map(Counter)
    | st.dictionaries(st.text(), inner).map(lambda items: defaultdict(list, items))
    | st.binary().map(bytearray) | st.lists(st.floats()).map(lambda items: array("d", items))
    | st.dictionaries(st.text(), inner).map(OrderedDict),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(values)
def test_plain_data_crosses_unchanged(value):
    message = json.loads(json.dumps(Plain(1).write({}, value=value)))
    crossed = Plain(2).decode(message["value"])
    assert repr(crossed) == repr(value)


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda x: [x, x]))
@example(["int", "x"])
@example(["named", "os", "system", "x"])
@example(["standard", "os", "system"])
@example(["type", "open"])
@example(["set", 1, [[["list", 3, [[]], None]]], None])
@example(["dict", 1, [[1], []], None])
@example(["list", 2, [[]], None])
@example(["same", 7])
@example(["yours", 7])
@example(["error", ["open"], [], {}])
@example(["mine", 7, {"of": ["type", "int"], "content": 1}])
@example(["module", "numpy"])
@example([])
def test_nonsense_is_recognised(data):
    with suppress(GoneError):
        _sandbox_tests.TestsSide(None).decode(data)


# --- programs that read and print ----------------------------------------------------------------


def str_of(number: int) -> str:
    """Decimal digits without Python's limit on their number."""
    digits = []
    while number:
        number, part = divmod(number, 10**1000)
        digits.append(f"{part:01000d}")
    return "".join(reversed(digits)).lstrip("0")


def printing(sandbox: Sandbox, source: str, stdin: str | None, expected: str) -> Verdict:
    (verdict,) = sandbox([Program(source, stdin=stdin, expected_stdout=expected)])
    return verdict


@pytest.mark.parametrize(
    ("source", "stdin", "expected"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", "1 2\n", "3"),
        ("import sys\nfor line in sys.stdin: print(line, end='')", "a\nb", "a\nb\n"),
        ("print(open(0).read())", "x" * 300_000, "x" * 300_000),
        ("print('a  ')\nprint()\nprint('b')\nprint()", None, "a\n\nb"),
        ("print(1)\nexit()", None, "1"),
        ("import sys\nprint(1)\nsys.exit(0)", None, "1"),
        ("import os\nprint(1, flush=True)\nos._exit(0)", None, "1"),
        ("import threading\nthreading.stack_size(1 << 26)\n"
         "threading.Thread(target=lambda: print(1)).start()", None, "1"),
        ("import atexit, io, os, sys\nsys.stdout = io.StringIO()\n"
         "atexit.register(lambda: os.write(1, sys.stdout.getvalue().encode()))\nprint(1)",
         None, "1"),
        ("import sys\nprint('debug', file=sys.stderr)\nprint('é')", None, "é"),
        ("def f(): print(__name__)\nif __name__ == '__main__': f()", None, "__main__"),
        ("", None, "\n"),
        ("print(1 / 3)", None, "0.333333"),
        ("print('Yes', -0.0, 1e5)", None, "YES\n0 100000"),
        ("print(7 ** 20_000)", None, str_of(7 ** 20_000)),
        ("print(int('9' * 5000) + 1)", None, "1" + "0" * 5000),
        ("print(" + "9" * 5000 + ")", None, "9" * 5000),
    ],
    ids=lambda value: f"{value!r:.40}",
)  # fmt: skip
def test_right_output(sandbox, source, stdin, expected):
    assert printing(sandbox, source, stdin, expected) == Verdict(True, "passed")


@pytest.mark.parametrize(
    ("source", "status", "detail"),
    [
        ("print(2)", "failed", "line 1: printed '2', expected '1'"),
        ("print(1)\nprint(2)", "failed", "line 2: printed '2', expected nothing"),
        ("pass", "failed", "line 1: printed nothing, expected '1'"),
        ("print(' 1 1')", "failed", "line 1: printed '1', expected nothing"),
        ("print('1', end=' ' * 500_000 + '2')", "failed", "printed more than"),
        ("print(1)\n1 / 0", "error", "ZeroDivisionError: division by zero"),
        ("print(1", "error", "SyntaxError"),
        ("input()", "error", "EOFError"),
        ("print(1)\nexit(3)", "exited", "exit status 3"),
        ("import os\nos._exit(3)", "exited", "exit status 3"),
        ("print(1)\nwhile True: pass", "timeout", "no result"),
        ("print('x' * 10**10)", "killed", "MemoryError"),
        ("while True: print('x' * 100000)", "killed", "printed more than"),
    ],
)
def test_wrong_output(sandbox, source, status, detail):
    verdict = printing(sandbox, source, None, "1\n")
    assert (verdict.passed, verdict.status) == (False, status)
    assert detail in verdict.detail


def test_tests_may_be_about_long_integers(sandbox):
    verdict = run(
        sandbox,
        "def f(n):\n    return str(10**n)\n",
        "assert f(5000) == str(10**5000)",
        "assert int(f(5000)) == 10**5000",
    )
    assert verdict == Verdict(True, "passed")


def test_tests_may_be_of_a_program_that_reads(sandbox):
    program = Program("x = int(input())", ("assert x == 7",), stdin="7")
    assert sandbox([program]) == [Verdict(True, "passed")]


def test_tests_and_output_at_once_are_refused(sandbox):
    with pytest.raises(ValueError, match="not by both"):
        sandbox([Program("", ("assert True",), expected_stdout="")])


# --- many, and to the end ------------------------------------------------------------------------


def test_order_is_kept_and_calls_may_overlap(sandbox):
    programs = [
        Program(f"def f():\n    return {n}", (f"assert f() % 3 == {n % 2}",)) for n in range(40)
    ]
    expected = [n % 3 == n % 2 for n in range(40)]
    results: dict[int, list[bool]] = {}

    def call(index: int) -> None:
        results[index] = [verdict.passed for verdict in sandbox(programs)]

    threads = [threading.Thread(target=call, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(results.values()) == [expected] * 3


def test_no_programs_no_verdicts(sandbox):
    assert sandbox([]) == []


def test_close_leaves_no_process_and_may_be_undone():
    sandbox = Sandbox(workers=1)
    assert run(sandbox, GOOD).passed
    (worker,) = sandbox._alive
    sandbox.close()
    sandbox.close()
    assert worker.process.returncode is not None
    assert not os.path.exists(worker.directory)
    assert run(sandbox, GOOD).passed
    sandbox.close()


def test_workers_end_with_the_interpreter():
    script = (
        "from weighted_mtp.evaluation.sandbox.host import Sandbox\n"
        "from weighted_mtp.core.types import Program\n"
        "s = Sandbox(workers=1); assert s([Program('')])[0].passed\n"
        "(w,) = s._alive; print(w.process.pid, w.directory)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    pid, directory = done.stdout.split()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert not os.path.exists(directory)


@pytest.mark.parametrize("setting", ["timeout", "memory_mb", "workers", "max_output"])
def test_settings_must_be_positive(setting):
    with pytest.raises(UserError, match=setting):
        Sandbox(**{setting: 0})


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(UserError, match="POSIX"):
        Sandbox()
