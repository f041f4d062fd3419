"""The sandbox: what programs do, what is said about it, what they leave behind."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import Program, Verdict
from weighted_mtp.evaluation.sandbox import Sandbox


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
        "while True: print('x' * 100000)",
        "import signal\nfor n in range(1, 65):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n    except Exception: pass\n"
        "while True: pass",
    ],
    ids=["loop", "sleep", "huge print", "deaf to signals"],
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
    assert run(sandbox, "assert not open('/proc/self/environ').read()").passed


def test_writes_land_in_a_directory_that_vanishes(sandbox):
    source = (
        "import os\nassert os.listdir() == []\nopen('left.txt', 'w').write('x')\n"
        "os.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.chmod('a', 0)\n"
        "assert False, os.getcwd()"
    )
    detail = run(sandbox, source).detail
    directory = Path(detail.removeprefix("AssertionError: "))
    assert directory.parent.parent == Path(tempfile.gettempdir())
    assert directory.parent.exists()
    assert not directory.exists()


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
        verdicts = sandbox([Program("import time\ntime.sleep(4)"), Program(GOOD)])
        assert [verdict.status for verdict in verdicts] == ["killed", "passed"]
        assert not os.path.exists(worker.directory)


def test_background_processes_do_not_outlive_their_program(sandbox, tmp_path):
    if not sandbox.network_isolated:
        pytest.skip("needs namespaces")
    mark = tmp_path / "mark"
    source = (
        f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(0.3)\n"
        f"    open({str(mark)!r}, 'w').close()\n    os._exit(0)"
    )
    assert run(sandbox, source).passed
    time.sleep(0.6)
    assert not mark.exists()


def test_no_network_where_it_says_so(sandbox):
    if not sandbox.network_isolated:
        pytest.skip("the kernel does not permit it here")
    verdict = run(sandbox, "import socket\nsocket.create_connection(('127.0.0.1', 9), 0.5)")
    assert verdict.status == "error"
    names = "import socket\nassert [n for _, n in socket.if_nameindex()] in ([], ['lo']), 'seen'"
    assert run(sandbox, names) == Verdict(True, "passed")


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
        "from weighted_mtp.evaluation.sandbox import Sandbox\n"
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
