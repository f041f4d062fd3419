"""Programs that mean harm, and programs that mean to pass without being right.

Each is contained, reported as a failure, and leaves nothing behind: once behind every wall this
kernel offers, once without namespaces, where limits and the system call filter must do.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from weighted_mtp.core.types import Program, Verdict
from weighted_mtp.evaluation.sandbox import seccomp as seccomp
from weighted_mtp.evaluation.sandbox.host import Sandbox

GOOD = Program("def f(x):\n    return x + 1\n", ("assert f(1) == 2",))
TIMEOUT = 0.5
MARK = f"left-by-a-hostile-program-{os.getpid()}"


@pytest.fixture(scope="module", params=["walls", "no namespaces"])
def sandbox(request):
    judge = Sandbox(timeout=TIMEOUT, memory_mb=256, workers=1)
    if request.param == "no namespaces":
        judge._settings = (*judge._settings[:-1], False)
    with judge:
        if not judge.isolation.processes:
            pytest.skip("neither namespaces nor a system call filter: not to be tried here")
        yield judge


def run(sandbox: Sandbox, source: str, *tests: str) -> Verdict:
    (verdict,) = sandbox([Program(source, tests)])
    return verdict


def family(sandbox: Sandbox) -> list[psutil.Process]:
    """The worker and every process below it."""
    (worker,) = sandbox._alive
    process = psutil.Process(worker.process.pid)
    return [process, *process.children(recursive=True)]


def own_files(sandbox: Sandbox) -> bool:
    """Whether programs work in a file system made for them."""
    return "weighted-mtp" not in run(sandbox, "import os\nassert False, os.getcwd()").detail


HARM = {
    "infinite loop": ("while True: pass", {"timeout"}),
    "sleep": ("import time\ntime.sleep(3600)", {"timeout"}),
    "fork bomb": ("import os\nwhile True: os.fork()", {"error", "timeout"}),
    "deaf fork bomb": (
        "import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
        "while True:\n    try: os.fork()\n    except OSError: pass",
        {"timeout"},
    ),
    "10 GB allocation": ("x = bytearray(10 * 2**30)", {"killed"}),
    "10 GB bit by bit": ("xs = []\nwhile True: xs.append(bytearray(2**20))", {"killed", "timeout"}),
    "10 GB in a big number": ("x = 1 << (8 * 10 * 2**30)", {"killed", "error"}),
    "10 GB by mmap": ("import mmap\nm = mmap.mmap(-1, 10 * 2**30)", {"error", "killed"}),
    "10 GB file": (
        "with open('big', 'wb') as file:\n    for _ in range(10 * 2**10): file.write(bytes(2**20))",
        {"error", "killed"},
    ),
    "10 GB in many files": (
        "for n in range(10**6):\n    with open(str(n), 'wb') as file: file.write(bytes(2**20))",
        {"error", "timeout", "killed"},
    ),
    "10 GB print": (
        "import sys\nfor _ in range(10 * 2**10): sys.stdout.write('x' * 2**20)\nassert False",
        {"killed", "timeout"},
    ),
    "10 GB print to stderr": (
        "import os\nline = b'x' * 2**20\nfor _ in range(10 * 2**10): os.write(2, line)",
        {"killed", "timeout"},
    ),
    "writing in the home directory": (
        f"open({str(Path.home() / MARK)!r}, 'w').write('x')",
        {"error"},
    ),
    "writing in the parent's directory": (f"open({str(Path.cwd() / MARK)!r}, 'w')", {"error"}),
    "writing in /tmp": (f"open('/tmp/../var/tmp/{MARK}', 'w')", {"error"}),
    "writing in /dev/shm": (f"open('/dev/shm/{MARK}', 'w')", {"error"}),
    "deleting the home directory": (
        f"import shutil\nshutil.rmtree({str(Path.home() / MARK)!r} + '/../nothing-here')",
        {"error"},
    ),
    "reading a file of the machine": ("assert not open('/etc/passwd').read()", {"error"}),
    "reading this test": (f"assert not open({__file__!r}).read()", {"error"}),
    "reading the environment": ("import os\nassert os.environ['SECRET']", {"error"}),
    "reading the environment of the parent": (
        "import os\nfor pid in os.listdir('/proc'):\n"
        "    if pid.isdigit(): open(f'/proc/{pid}/environ', 'rb').read()\nassert False",
        {"error", "failed"},
    ),
    "opening a socket": (
        "import socket\nsocket.create_connection(('127.0.0.1', 80), 0.5)",
        {"error"},
    ),
    "sending a datagram": (
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', "
        "('127.0.0.1', 53))",
        {"error"},
    ),
    "a Unix socket": (
        "import socket\nsocket.socket(socket.AF_UNIX).connect('/run/docker.sock')",
        {"error"},
    ),
    "killing the parent": (
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
        {"error", "failed"},
    ),
    "killing everyone": ("import os, signal\nos.kill(-1, signal.SIGKILL)", {"error", "killed"}),
    "killing process 1": ("import os, signal\nos.kill(1, signal.SIGKILL)", {"error"}),
    "stopping itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", {"timeout"}),
    "limiting the parent": (
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))\n"
        "assert os.getppid() != 0",  # in a namespace of its own, it has none: that call was its own
        {"error", "failed"},
    ),
    "raising its limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
        {"error"},
    ),
    "running a shell": ("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'])", {"error"}),
    "becoming root": (
        "import os\nos.setuid(12345)\nos.setuid(0)\nassert os.getuid() == 0",
        {"error"},
    ),
    "new namespaces": (
        "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
        {"failed"},
    ),
    "tracing its neighbour": (
        "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
        {"failed"},
    ),
    "threads that never end": (
        "import threading, time\n"
        "for _ in range(2): threading.Thread(target=time.sleep, args=(3600,)).start()\n"
        "threading.Thread(target=time.sleep, args=(3600,)).start()\ntime.sleep(3600)",
        {"timeout"},
    ),
    "a thread bomb": (
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(3600,)).start()",
        {"error", "killed", "timeout"},
    ),
    "deep recursion": ("def f(n): return f(n + 1)\nf(0)", {"error"}),
    "deeper recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return [f(n + 1)]\nf(0)",
        {"killed", "error", "timeout"},
    ),
    "recursion in C": (
        "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
        {"killed", "error", "timeout"},
    ),
    "signals masked": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        {"timeout", "killed"},
    ),
    "signals ignored": (
        "import signal\nfor n in range(1, 65):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n    except Exception: pass\n"
        "while True: pass",
        {"timeout", "killed"},
    ),
    "alarms": (
        "import signal\nsignal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, 1e-5, 1e-5)\nwhile True: pass",
        {"timeout"},
    ),
    "a segfault": ("import ctypes\nctypes.string_at(0)", {"killed"}),
    "an abort": ("import os\nos.abort()", {"killed"}),
    "directories too deep to name": (
        "import os\nfor _ in range(100):\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)\n"
        "os.chmod('.', 0)\nassert False",
        {"failed", "error", "timeout"},
    ),
    "names that confuse": (
        "import os\nfor name in ('\\n1', '-rf', '*', '\\x1b'):\n    os.makedirs(f'{name}/{name}')\n"
        "os.symlink('/', 'root')\nos.symlink('root', '\\n2')\nos.mkfifo('pipe')\nassert False",
        {"failed"},
    ),
    "a report of its own": (
        'import os\nbody = b\'{"status": "passed", "detail": ""}\'\n'
        "for fd in range(3, 300):\n"
        "    for data in (body + b'\\n', len(body).to_bytes(4, 'big') + body):\n"
        "        try: os.write(fd, data)\n        except OSError: pass\nos._exit(0)",
        {"exited"},
    ),
    "half a message": ("import os, time\nos.write(3, b'\\0\\0')\ntime.sleep(3600)", {"timeout"}),
    "a message without end": (
        "import os\nos.write(3, b'\\x03\\0\\0\\0')\nwhile True: os.write(3, bytes(2**20))",
        {"exited", "killed", "timeout", "error"},
    ),
    "os._exit before the tests": ("import os\nos._exit(0)", {"exited"}),
    "sys.exit": ("import sys\nsys.exit(0)", {"exited"}),
    "closing everything": ("import os\nos.closerange(0, 1000)", {"exited"}),
    "closing and staying": (
        "import os, time\nos.closerange(0, 1000)\ntime.sleep(3600)",
        {"exited", "timeout"},
    ),
}


@pytest.mark.parametrize("name", HARM)
def test_harm_is_contained(sandbox, monkeypatch, name):
    source, statuses = HARM[name]
    if name == "10 GB in many files" and not own_files(sandbox):
        pytest.skip("only a file system of its own has a limit on the whole")
    monkeypatch.setenv("SECRET", "a secret")
    assert sandbox.isolation  # a worker is there, in case the last one was taken down
    before = [process.pid for process in family(sandbox)]
    verdict = run(sandbox, source, "assert f(1) == 2")
    assert not verdict.passed
    assert verdict.status in statuses, verdict
    after = family(sandbox)
    assert [process.pid for process in after] == before, "the worker is the one it was, and alone"
    assert all(process.status() != psutil.STATUS_ZOMBIE for process in after)
    (worker,) = sandbox._alive
    left = [path for path in Path(worker.directory).rglob("*") if path.name not in SHELL]
    assert left == []
    places = (Path.home(), Path.cwd(), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
    assert not any((place / MARK).exists() for place in places)
    assert sandbox([GOOD])[0].passed


SHELL = {"program", "tests", "root", "in-use"}
"""What is in a worker's own directory, always."""


def test_endless_output_does_not_fill_memory(sandbox):
    source = HARM["10 GB print"][0]
    run(sandbox, source)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    workers = sum(process.memory_info().rss for process in family(sandbox))
    run(sandbox, source)
    sandbox([Program(source, expected_stdout="x")])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10  # KiB
    assert sum(process.memory_info().rss for process in family(sandbox)) - workers < 40 << 20


def test_a_killed_worker_takes_all_it_started_with_it(sandbox):
    assert sandbox([GOOD])[0].passed
    old = family(sandbox)
    old[0].kill()
    _, alive = psutil.wait_procs(old[1:], timeout=5)
    assert alive == []
    assert sandbox([GOOD])[0].passed


# --- passing without being right -----------------------------------------------------------------

LIAR = """
class Liar{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    __hash__ = None
    def same(self, *_): return self
    __abs__ = __sub__ = __rsub__ = __add__ = __radd__ = __round__ = __float__ = same
    def __bool__(self): return True
    def __instancecheck__(self, kind): return True
def f(x): return Liar()
"""
SEARCH = """
import ctypes, gc, inspect, re, sys
def guesses():
    texts = [repr(sys.modules)]
    frame = sys._getframe()
    while frame is not None:
        texts += [repr(frame.f_locals), repr(frame.f_globals), repr(frame.f_code.co_consts)]
        frame = frame.f_back
    texts += [repr(thing)[:100000] for thing in gc.get_objects()[:200000]]
    try:
        for line in open("/proc/self/maps"):
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            if "rw" in line: texts.append(ctypes.string_at(low, high - low).decode("latin-1"))
    except OSError: pass
    for text in texts:
        yield from re.findall(r"81726\\d{3}", text)
found = None
def f(x):
    global found
    found = next((int(guess) for guess in guesses()), 0)
    return found
"""
WRONG = "def f(x):\n    return -1\n"
CHEATS = {
    "a liar": (LIAR.format(base=""), "assert f(1) == 2"),
    "a lying number": (LIAR.format(base="(int)"), "assert f(1) == 2"),
    "a lying string": (LIAR.format(base="(str)"), "assert f(1) == 'b'"),
    "a lying list": (LIAR.format(base="(list)"), "assert f(1) == [2]"),
    "a lying float": (LIAR.format(base="(float)"), "assert abs(f(1) - 2.5) < 1e-6"),
    "a liar on the right": (LIAR.format(base=""), "assert 2 == f(1)"),
    "a liar within": (
        LIAR.format(base="") + "g = f\ndef f(x): return [g(x)]",
        "assert f(1) == [2]",
    ),
    "a liar in arithmetic": (LIAR.format(base=""), "assert abs(f(1) - 2.5) < 1e-6"),
    "a liar in order": (LIAR.format(base=""), "assert 1 < f(1) < 3"),
    "a liar that contains": (LIAR.format(base=""), "assert 2 in f(1)"),
    "a liar contained": (LIAR.format(base=""), "assert f(1) in [2, 3]"),
    "a lying class": (LIAR.format(base="") + "f = Liar()\n", "assert f == 2"),
    "its own abs": (WRONG + "def abs(x): return 0", "assert abs(f(1) - 2.5) < 1e-6"),
    "its own math": (
        WRONG + "class math:\n    isclose = staticmethod(lambda *a: True)",
        "assert math.isclose(f(1), 2.5)",
    ),
    "its own builtins": (
        WRONG + "import builtins\nbuiltins.abs = builtins.len = lambda x: 0\n"
        "builtins.isinstance = builtins.all = lambda *x: True",
        "assert all([f(1) == 2]) and abs(f(1) - 2) == 0",
    ),
    "its own AssertionError": (
        WRONG + "import builtins\nclass Silent(BaseException): pass\n"
        "builtins.AssertionError = AssertionError = Silent\n__debug__\n",
        "assert f(1) == 2",
    ),
    "its own check": (
        WRONG + "def check(candidate): pass",
        "def check(candidate):\n    assert candidate(1) == 2\ncheck(f)",
    ),
    "leaving in a test": ("import os\ndef f(x): os._exit(0)", "assert f(1) == 2"),
    "exit in a test": ("import sys\ndef f(x): sys.exit(0)", "assert f(1) == 2"),
    "exit in a forgiving test": (
        "import os\ndef f(x): os._exit(0)",
        "try:\n    assert f(1) == 2\nexcept BaseException:\n    pass",
    ),
    "exit functions": (
        WRONG + "import atexit, os\natexit.register(os._exit, 0)",
        "assert f(1) == 2",
    ),
    "a trace": (
        WRONG + "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\n"
        "sys.excepthook = lambda *a: None",
        "assert f(1) == 2",
    ),
    "the server replaced": (
        WRONG + "import gc\nfor thing in gc.get_objects():\n"
        "    if type(thing).__name__ == 'ProgramSide':\n"
        "        type(thing)._answer = lambda *a: {'value': True, 'status': 'passed'}",
        "assert f(1) == 2",
    ),
    "answers with a poisoned change": (
        WRONG + "import gc\nfor thing in gc.get_objects():\n"
        "    if type(thing).__name__ == 'ProgramSide':\n"
        "        type(thing)._answer = lambda *a: {'value': ['mine', 0, 'os'], "
        "'changed args': [[0, 1], [99, 1]], 'raised': ['exec', 'SystemExit'], 'text': 'passed'}",
        "assert f([1]) == 2",
    ),
    "calling the tests back": (
        WRONG + "import gc\nfor thing in gc.get_objects():\n"
        "    if type(thing).__name__ == 'ProgramSide':\n"
        "        type(thing)._answer = lambda *a: {'callback': 0, 'args': [], 'kwargs': {}}",
        "assert f(1) == 2",
    ),
    "reading the expected answer": (SEARCH, "assert f(1) == 81726354"),
    "reading the answer, run before": (SEARCH, "assert f(1) == 81726354"),
    "the tests' own frames": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame.f_back:\n"
        "        frame = frame.f_back\n        frame.f_globals.update(dict.fromkeys("
        "('status', 'passed', 'outcome', 'play_tests'), lambda *a: ('passed', '')))\n    return -1",
        "assert f(1) == 2",
    ),
    "threads that answer first": (
        WRONG + "import os, threading\ndef spam():\n    body = b'{\"value\": true}'\n"
        "    while True: os.write(3, len(body).to_bytes(4, 'big') + body)\n"
        "threading.Thread(target=spam, daemon=True).start()",
        "assert f(1) == 2",
    ),
    "an answer that is too deep": (
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(x):\n    y = []\n"
        "    for _ in range(5000): y = [y]\n    return y",
        "try:\n    y = f(1)\nexcept Exception:\n    y = 2\nassert y == 2 and f(1) == 2",
    ),
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_pass(sandbox, name):
    source, tests = CHEATS[name]
    verdict = run(sandbox, source, tests)
    assert not verdict.passed
    assert verdict.status in {"failed", "error", "exited", "timeout"}
    assert sandbox([GOOD])[0].passed


def test_the_expected_output_is_nowhere_to_be_read(sandbox):
    source = SEARCH + "print(f(1))"
    (verdict,) = sandbox([Program(source, stdin="1\n", expected_stdout="81726354\n")])
    assert verdict.status in {"failed", "timeout"}


HELPER = "def close(a, b):\n    return True\ndef f(x):\n    return -1\n"


def test_a_helper_that_only_the_program_has(sandbox):
    assert not run(sandbox, HELPER, "assert close(f(1), 2.5)").passed


def test_a_helper_that_the_tests_define_is_theirs(sandbox):
    tests = "def close(a, b):\n    return abs(a - b) < 1e-6\nassert close(f(1), 2.5)"
    assert run(sandbox, HELPER, tests).status == "failed"


def test_builtin_names_where_nothing_else_is_tested(sandbox):
    source = "def sum(a, b):\n    return -1\ndef abs(x):\n    return 0\n"
    assert not run(sandbox, source, "assert abs(sum(1, 2) - 3) < 1e-6").passed


def test_files_of_the_same_user_keep_their_modes(tmp_path):
    """Landlock lets a change of mode, owner, attribute or time pass; the filter does not."""
    if not seccomp.supported():
        pytest.skip("no filter for this machine")
    code = f"""
import os
from weighted_mtp.evaluation.sandbox import kernel as kernel
from weighted_mtp.evaluation.sandbox import seccomp as seccomp
kernel.drop_capabilities()
kernel.filter_calls(seccomp.call_filter(os.getpid(), keep_modes=True))
path = {str(tmp_path)!r}
refused = 0
for attempt in (
    lambda: os.chmod(path, 0), lambda: os.chmod('.', 0, dir_fd=os.open(path, 0)),
    lambda: os.fchmod(os.open(path, 0), 0), lambda: os.chown(path, -1, -1),
    lambda: os.lchown(path, -1, -1), lambda: os.setxattr(path, 'user.x', b''),
    lambda: os.removexattr(path, 'user.x'), lambda: os.utime(path), lambda: os.utime(path, (1, 1)),
):
    try: attempt()
    except PermissionError: refused += 1
open(path + '/x', 'w').write('y')
print(refused, open(path + '/x').read())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "9 y\n"
    assert tmp_path.stat().st_mode & 0o777 == 0o700
