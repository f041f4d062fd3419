"""Wrong verdicts of the sandbox on programs whose verdict is known (`judge_programs.py`).

    python benchmarks/judge_verdicts.py [--plain] [--out FILE.json]

`--plain` also runs every right program in this process as Python would, with its tests after it:
each must pass, so that a verdict against it is the sandbox's mistake.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from judge_programs import RIGHT, WRONG, Case
from weighted_mtp.core.types import Program
from weighted_mtp.evaluation.sandbox.host import Sandbox


def program(case: Case) -> Program:
    """A case as the sandbox takes it."""
    _, source, tests = case
    if isinstance(tests, str):
        return Program(source, (tests,))
    return Program(source, stdin=tests[0], expected_stdout=tests[1])


def passes_plainly(case: Case) -> bool:
    """Whether plain Python finds a program right: the source with its tests after it."""
    _, source, tests = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(source, encoding="utf-8")
        command = [sys.executable, str(path)]
        if isinstance(tests, str):
            run = (
                "import sys; path, tests = sys.argv[1:]; sys.argv = [path]\n"
                "space = {'__name__': 'program', '__file__': path}\n"
                "import types; sys.modules['program'] = module = types.ModuleType('program')\n"
                "module.__dict__.update(space); space = module.__dict__\n"
                "exec(compile(open(path).read(), path, 'exec'), space)\n"
                "space['__name__'] = '__main__'\nexec(tests, space)"
            )
            command = [sys.executable, "-c", run, str(path), tests]
        text = None if isinstance(tests, str) else tests[0]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, cwd=folder, timeout=30, check=False
        )
    right = isinstance(tests, str) or done.stdout.strip() == tests[1].strip()
    if done.returncode or not right:
        print(case[0], (done.stderr or done.stdout).strip().splitlines()[-1:], file=sys.stderr)
    return done.returncode == 0 and right


def main() -> None:
    """Judge all, print the figures and what was judged wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    figures: dict[str, Any] = {"python": sys.version.split()[0], "cores": os.cpu_count()}
    if args.plain:
        figures["right in plain Python"] = sum(map(passes_plainly, RIGHT))
    with Sandbox(timeout=args.timeout) as sandbox:
        for kind, cases in (("right", RIGHT), ("wrong", WRONG)):
            verdicts = sandbox([program(case) for case in cases])
            mistakes = {
                case[0]: f"{verdict.status}: {verdict.detail}"
                for case, verdict in zip(cases, verdicts, strict=True)
                if verdict.passed != (kind == "right")
            }
            figures[kind] = {"programs": len(cases), "judged wrong": len(mistakes)}
            figures[kind]["which"] = mistakes
    print(json.dumps(figures, indent=2))
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
