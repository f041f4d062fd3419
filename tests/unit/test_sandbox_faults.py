"""What is the machine's fault, and never becomes a verdict; what programs and the killed leave."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.processes import available_cores
from weighted_mtp.core.types import Program, Verdict
from weighted_mtp.evaluation.sandbox import directory as directories
from weighted_mtp.evaluation.sandbox.host import Sandbox

GOOD = Program("def f(x):\n    return x + 1\n", ("assert f(1) == 2",))
TIMEOUT = 1.0


def new_sandbox(walls: str, **settings) -> Sandbox:
    judge = Sandbox(**({"timeout": TIMEOUT, "workers": 1} | settings))
    if walls == "no namespaces":
        judge._settings = (*judge._settings[:-1], False)
    return judge


@pytest.fixture(scope="module", params=["walls", "no namespaces"])
def sandbox(request):
    with new_sandbox(request.param) as judge:
        if not judge.isolation.processes:
            pytest.skip("neither namespaces nor a system call filter: not to be tried here")
        yield judge


def run(sandbox: Sandbox, source: str, *tests: str) -> Verdict:
    (verdict,) = sandbox([Program(source, tests)])
    return verdict


# --- one program after another -------------------------------------------------------------------

SPOILERS = {
    "mode": "import os\nos.chmod('.', 0)",
    "mode of the directory above": "import os\nfor d in ('..', '../..'):\n"
    "    try: os.chmod(d, 0)\n    except OSError: pass",
    "attribute": "import os\nfor d in ('.', '..', '../..'):\n"
    "    for n in ('user.x', 'system.posix_acl_default'):\n"
    "        try: os.setxattr(d, n, b'\\2\\0\\0\\0')\n        except OSError: pass",
    "gone": "import os\nos.rmdir(os.getcwd())",
    "moved": "import os\nos.rename('../work', '../other')",
    "links": "import os\nos.symlink('/', 'root'); os.symlink('..', 'up')\n"
    "os.link('../program.py', 'x')",
    "files that stay open": "files = [open(str(n), 'w') for n in range(20)]",
    "mask": "import os\nos.umask(0o777)\nopen('closed', 'w')",
    "pipes": "import os\nos.mkfifo('pipe')\nos.mkdir('d', 0)",
}  # fmt: skip
WRITES = (
    "import os\nassert os.listdir() == [] and os.stat('.').st_mode & 0o777 == 0o755 & ~0o022\n"
    "assert os.listxattr('.') == [] and os.listxattr('..') == []\n"
    "os.mkdir('a'); open('a/b', 'w').write('x')\nassert open('a/b').read() == 'x'"
)


@pytest.mark.parametrize("name", SPOILERS)
def test_nothing_is_left_to_the_next_program(sandbox, name):
    for _ in range(2):
        assert run(sandbox, SPOILERS[name]).status in {"passed", "error"}
        assert run(sandbox, WRITES) == Verdict(True, "passed")
    (worker,) = sandbox._alive
    assert list(Path(worker.directory, "program").iterdir()) == []


LITTER = {
    "a million files": "for n in range(10**6): open(str(n), 'w').close()",
    "directories in each other": "import os\nwhile True: os.mkdir('d'); os.chdir('d')",
    "directories side by side": "import os\nn = 0\nwhile True: os.makedirs(f'{n}/a/b'); n += 1",
}


@pytest.mark.parametrize(
    "name",
    [
        # As many as a second makes take twenty to remove.
        pytest.param(name, marks=pytest.mark.slow if name.endswith("side by side") else ())
        for name in LITTER
    ],
)
def test_litter_is_cleaned_in_time(sandbox, name):
    busy = max(0.0, os.getloadavg()[0] / available_cores() - 1)  # a machine shared with others
    start = time.monotonic()
    verdict = run(sandbox, LITTER[name])
    assert time.monotonic() - start < TIMEOUT + 2 + busy
    assert verdict.status in {"error", "killed", "timeout"}
    assert run(sandbox, WRITES).passed
    (worker,) = sandbox._alive
    place = Path(worker.directory, "program")
    assert all(len(path.name) > 30 for path in place.iterdir()), "what is left has been hidden"
    while list(place.iterdir()):
        assert run(sandbox, WRITES).passed


@pytest.mark.parametrize(
    "source",
    [
        "raise ValueError('x' * 10**7 + '\\x1b[31m')",
        "raise ValueError('\\x1b[31m' * 10**3)",
        "raise type('E' * 10**6, (Exception,), {})",
        "import os, sys\nsys.stderr.write('\\x1b]0;title\\x07' * 10**3)\nsys.stderr.flush()\n"
        "os._exit(3)",
        "raise SystemExit(10**4000)",
        "raise SystemExit('\\x9b' * 10**5)",
    ],
)
def test_a_detail_is_one_short_line_that_terminals_can_show(sandbox, source):
    for program in (Program(source, ("assert f(1)",)), Program(source, expected_stdout="")):
        (verdict,) = sandbox([program])
        assert not verdict.passed
        assert 0 < len(verdict.detail) <= 300
        assert verdict.detail.isprintable()


# --- faults of the machine -----------------------------------------------------------------------


def in_a_process(code: str, *wrapper: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code that has `judge`, a function that prints the verdicts of three programs."""
    script = (
        "from weighted_mtp.evaluation.sandbox.host import Sandbox\n"
        "from weighted_mtp.core.types import Program\n"
        "from weighted_mtp.core.errors import UserError\n"
        "good = Program('def f(x): return x + 1', ('assert f(1) == 2',))\n"
        "bad = Program('import os\\nos._exit(0)', ('assert f(1) == 2',))\n"
        "def judge(sandbox):\n    try: print(*[v.status for v in sandbox([good, bad, good])])\n"
        "    except UserError as error: print('UserError:', error)\n"
    ) + textwrap.dedent(code)
    return subprocess.run(
        [*wrapper, sys.executable, "-c", script],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


JUDGE = "with Sandbox(workers=1) as sandbox: judge(sandbox)"


def test_few_open_files_are_enough():
    done = in_a_process(JUDGE, "sh", "-c", 'ulimit -n 128; exec "$0" "$@"')
    assert done.stdout == "passed exited passed\n"


@pytest.mark.parametrize(
    ("limit", "words"),
    [("-n 48", "ulimit -n"), ("-t 2", "ulimit -t"), ("-v 400000", "ulimit -v"), ("-f 1", "")],
)
def test_limits_below_those_of_programs_are_named(limit, words):
    done = in_a_process(JUDGE, "sh", "-c", f'ulimit {limit}; exec "$0" "$@"')
    assert "UserError: programs cannot be judged on this machine" in done.stdout, done.stderr
    assert words in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_no_directory_for_temporary_files(tmp_path):
    done = in_a_process("import tempfile; tempfile.tempdir = '/proc/no'\n" + JUDGE)
    assert "no directory for temporary files" in done.stdout


def can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", tempfile.gettempdir()]
    return bool(shutil.which("unshare")) and subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_full_disk_is_no_verdict(tmp_path, namespaces):
    if not can_mount():
        pytest.skip("no file system can be mounted here")
    code = f"""
        import os
        with Sandbox(workers=1) as sandbox:
            sandbox._settings = (*sandbox._settings[:-1], {namespaces})
            judge(sandbox)
            try:
                with open(os.environ["TMPDIR"] + "/big", "wb") as file: file.write(bytes(10**7))
            except OSError: pass
            writer = Program("open('x', 'w').write('x' * 10**5)")
            try: print(sandbox([writer])[0].status)
            except UserError as error: print('UserError:', error)
        """
    mount = f'mount -t tmpfs -o size=1m none {tmp_path}; exec "$0" "$@"'
    done = in_a_process(code, "unshare", "-rm", "sh", "-c", mount, TMPDIR=str(tmp_path))
    first, second = done.stdout.splitlines() or [done.stderr, ""]
    assert first == "passed exited passed"
    assert second == "passed" or "No space left" in second  # its files are elsewhere, or no word


def test_a_directory_removed_by_a_cleaner_costs_nothing(sandbox):
    for _ in range(2):
        assert sandbox([GOOD])[0].passed
        (worker,) = sandbox._alive
        shutil.rmtree(worker.directory, ignore_errors=True)
        writer = Program("import bz2\nopen('x', 'w').write('y')\ndef f(x): return 1", GOOD.tests)
        verdicts = sandbox([GOOD, writer, GOOD])
        assert [verdict.status for verdict in verdicts] == ["passed", "failed", "passed"]


def test_a_directory_removed_while_a_program_runs(sandbox):
    assert sandbox([GOOD])[0].passed
    (worker,) = sandbox._alive
    remove = f"sleep 0.3; rm -rf {worker.directory}/*"
    with subprocess.Popen(["sh", "-c", remove]):
        verdict = run(sandbox, "import time\ntime.sleep(0.6)\nopen('x', 'w').write('y')")
    assert verdict.passed


def test_a_worker_that_always_dies_is_no_verdict():
    with new_sandbox("walls", timeout=10.0) as judge:
        assert judge([GOOD])[0].passed
        stop = False

        def kill() -> None:
            while not stop:
                for worker in list(judge._alive):
                    worker.process.kill()
                time.sleep(0.02)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            with pytest.raises(UserError, match="cannot be judged on this machine: it has ended"):
                judge([Program("import time\ntime.sleep(5)")])
        finally:
            stop = True
            thread.join()
        assert judge([GOOD])[0].passed


def test_a_program_killed_once_from_outside_is_run_again():
    with new_sandbox("walls", timeout=10.0) as judge:
        assert judge.isolation
        (worker,) = judge._alive
        before = {p.pid for p in psutil.Process(worker.process.pid).children(recursive=True)}
        kill = (
            "import psutil, sys, time, os\nworker, *old = map(int, sys.argv[1:])\n"
            "while True:\n    time.sleep(0.3)\n"
            "    now = psutil.Process(worker).children(recursive=True)\n"
            "    new = [p for p in now if p.pid not in old]\n"
            "    if new: [p.kill() for p in new]; break\n"
        )
        command = [sys.executable, "-c", kill, str(worker.process.pid), *map(str, before)]
        with subprocess.Popen(command):
            assert run(judge, "import time\ntime.sleep(1)", "assert True").passed


def test_a_program_that_was_stopped_has_its_time_again():
    with new_sandbox("walls", timeout=1.5) as judge:
        assert judge.isolation
        (worker,) = judge._alive

        def stop() -> None:
            now = psutil.Process(worker.process.pid).children(recursive=True)
            pids = {worker.process.pid, *(p.pid for p in now)}
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in pids:
                    with suppress(ProcessLookupError):  # one that has ended meanwhile
                        os.kill(pid, number)
                time.sleep(3.0 if number == signal.SIGSTOP else 0)

        timer = threading.Timer(0.4, stop)
        timer.start()
        assert run(judge, "import time\nfor _ in range(8): time.sleep(0.1)", "assert True").passed
        timer.join()


def test_other_processes_of_the_user_do_not_count():
    with new_sandbox("no namespaces", workers=1) as judge:
        assert judge.isolation
        uid = 65534 if os.geteuid() == 0 else os.geteuid()
        many = (
            "import threading, time\n"
            "for _ in range(60): threading.Thread(target=time.sleep, args=(30,)).start()\n"
            "print('ready', flush=True)"
        )
        user = {"user": uid} if os.geteuid() == 0 else {}
        command = [sys.executable, "-I", "-S", "-c", many]
        try:
            other = subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/", **user)
        except OSError:
            pytest.skip("this user may not run this Python")
        with other:
            assert other.stdout is not None
            if other.stdout.readline() != b"ready\n":
                pytest.skip("this user may not run this Python")
            source = (
                "from concurrent.futures import ThreadPoolExecutor\nimport time\n"
                "with ThreadPoolExecutor(8) as pool:\n"
                "    list(pool.map(lambda n: time.sleep(0.05), range(8)))"
            )
            assert run(judge, source) == Verdict(True, "passed")
            other.kill()


# --- what the killed leave -----------------------------------------------------------------------


def left(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(directories.PREFIX)]


def test_a_killed_caller_leaves_nothing(tmp_path):
    code = (
        "import os, threading, time\nsandbox = Sandbox(workers=2, timeout=60)\n"
        "slow = Program('import time\\ntime.sleep(50)')\n"
        "threading.Thread(target=lambda: sandbox([slow, slow]), daemon=True).start()\n"
        "while len(sandbox._alive) < 2: time.sleep(0.05)\ntime.sleep(0.3)\n"
        "print(*[w.process.pid for w in sandbox._alive], flush=True)\nos.kill(os.getpid(), 9)"
    )
    done = in_a_process(code, TMPDIR=str(tmp_path))
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and (left(tmp_path) or any(map(psutil.pid_exists, pids))):
        time.sleep(0.05)
    assert left(tmp_path) == []
    assert not any(map(psutil.pid_exists, pids))


def test_the_next_start_deletes_what_the_dead_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, lock = directories.make_directory()
    Path(dead, "program", "1").mkdir(parents=True)
    os.close(lock)
    alive, lock = directories.make_directory()
    unproven = tmp_path / f"{directories.PREFIX}without-a-lock"
    unproven.mkdir()
    (tmp_path / f"{directories.PREFIX}a-file").write_text("")
    (tmp_path / f"{directories.PREFIX}a-link").symlink_to(dead)
    other = tmp_path / "another-program"
    other.mkdir()
    (other / "in-use").write_text("")
    kept = tmp_path / "precious"
    kept.mkdir()
    (kept / "file").write_text("x")
    trap = tmp_path / f"{directories.PREFIX}trap"
    trap.mkdir()
    (trap / "in-use").symlink_to(kept / "file")
    with Sandbox(workers=1) as judge:
        assert judge([GOOD])[0].passed
    assert not os.path.exists(dead)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {Path(alive).name, unproven.name, other.name, kept.name, trap.name,
                     f"{directories.PREFIX}a-file", f"{directories.PREFIX}a-link"}  # fmt: skip
    assert (kept / "file").read_text() == "x"
    os.close(lock)


def test_no_zombies_as_process_1(tmp_path):
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    code = """
        import os, time
        def zombies():
            found = []
            for pid in filter(str.isdigit, os.listdir('/proc')):
                state = open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()
                found += [pid] * (state[0] == 'Z')
            return len(found)
        assert os.getpid() == 1
        for namespaces in (True, False):
            sandbox = Sandbox(workers=1, timeout=2)
            sandbox._settings = (*sandbox._settings[:-1], namespaces)
            judge(sandbox)
            print(zombies(), end=' ')
            (worker,) = sandbox._alive
            worker.process.kill()
            judge(sandbox)
            print(zombies(), end=' ')
            sandbox.close()
            time.sleep(0.2)
            print(zombies())
        """
    command = ["unshare", "-r", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no process namespace can be made here")
    done = in_a_process(code, *command)
    assert done.stdout.count("passed exited passed") == 4, done.stderr
    assert done.stdout.count("0 ") == 4
    assert [line[-1] for line in done.stdout.splitlines()] == ["d", "d", "0", "d", "d", "0"] or (
        done.stdout.replace("passed exited passed\n", "") == "0 0 0\n0 0 0\n"
    )
