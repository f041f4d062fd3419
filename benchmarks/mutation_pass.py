"""Change one thing in the source at a time, and see whether a quick test notices.

For each module a seeded sample of small changes is drawn (operators swapped, constants moved,
keyword arguments and statements dropped, conditions fixed). Each is written to a copy of `src`, and
the quick tests that run the changed lines are run against the copy (with --again, all tests of the
module: a fixture that several tests share is run for the first of them alone). A fork of a process
that has imported PyTorch runs them, so a mutant takes seconds.

    python benchmarks/mutation_pass.py --out results.jsonl                 # all modules
    python benchmarks/mutation_pass.py --out results.jsonl --only data/packing.py --each 10
    python benchmarks/mutation_pass.py --out results.jsonl --again         # survivors alone
    python benchmarks/mutation_pass.py --out results.jsonl --options       # each ignored in turn
    python benchmarks/mutation_pass.py --out results.jsonl --table         # shares by module

Mutants that behave as the original does are listed with the reason in `results/mutants_alike.json`.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import json
import os
import py_compile
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALIKE = ROOT / "benchmarks" / "results" / "mutants_alike.json"

_LOOP = ["unit/test_trainer_invariants.py", "unit/test_step_policies.py"]
_OBJECTIVES = ["unit/test_objectives.py", "unit/test_objective_rules.py", *_LOOP]
_DECODING = [
    "unit/test_decoding.py",
    "unit/test_speculative.py",
    "unit/test_stopping.py",
    "unit/test_sampling_tokens.py",
    "unit/test_fast_model.py",
    "unit/test_speculative_distribution.py",
]
_SAMPLING = [
    "unit/test_sampling.py",
    "unit/test_sampling_pairs.py",
    "unit/test_sampling_section.py",
]
_LAYOUTS = ["unit/test_checkpoints.py", "unit/test_adapter.py", "unit/test_convert_cli.py"]
_OPTIONS = "unit/test_recipe_options.py"
_SAVING = ["unit/test_saving.py", "unit/test_shards.py"]

MODULES: dict[str, tuple[int, list[str]]] = {
    "data/packing.py": (14, [_OPTIONS, "unit/test_packing.py", "unit/test_loading.py"]),
    "data/batches.py": (
        14,
        [_OPTIONS, *(f"unit/test_{x}.py" for x in ("packing", "collators", "objectives"))],
    ),
    "data/collators.py": (6, [_OPTIONS, "unit/test_collators.py"]),
    "data/loading.py": (8, [_OPTIONS, "unit/test_loading.py", "unit/test_packing.py"]),
    "decoding/batch.py": (10, _DECODING),
    "decoding/dice.py": (4, _DECODING),
    "decoding/draft_length.py": (5, _DECODING),
    "decoding/generate.py": (4, _DECODING),
    "decoding/greedy.py": (5, _DECODING),
    "decoding/rows.py": (5, _DECODING),
    "decoding/sampling.py": (6, _DECODING),
    "decoding/speculative.py": (8, _DECODING),
    "decoding/stopping.py": (5, _DECODING),
    "decoding/verify.py": (6, _DECODING),
    "pipelines/checkpoint_utils.py": (12, [*_SAVING, "integration/test_resume.py"]),
    "pipelines/checkpointing/restoring.py": (6, _SAVING),
    "pipelines/checkpointing/sharded.py": (8, _SAVING),
    "runtime/shards.py": (6, _SAVING),
    "models/meta_mtp/checkpoints.py": (5, _LAYOUTS),
    "models/meta_mtp/layouts/native.py": (4, _LAYOUTS),
    "models/meta_mtp/layouts/huggingface.py": (4, _LAYOUTS),
    "models/meta_mtp/layouts/tensor_files.py": (5, _LAYOUTS),
    "pipelines/training/optimization.py": (10, [_OPTIONS, "unit/test_optimization.py", *_LOOP]),
    "pipelines/training/objectives/base.py": (14, [_OPTIONS, *_OBJECTIVES]),
    "pipelines/training/objectives/critic.py": (10, [_OPTIONS, *_OBJECTIVES]),
    "pipelines/training/objectives/td_weighted.py": (8, [_OPTIONS, *_OBJECTIVES]),
    "pipelines/training/module.py": (10, [_OPTIONS, *_OBJECTIVES, "unit/test_packing.py"]),
    "pipelines/training/trainer.py": (6, [_OPTIONS, *_OBJECTIVES]),
    "pipelines/training/policies.py": (7, _LOOP),
    "value_weighting/td_weighting.py": (14, ["unit/test_td_weighting.py"]),
    "value_weighting/td_statistics.py": (10, ["unit/test_td_statistics.py"]),
    "value_weighting/controls.py": (8, ["unit/test_controls.py"]),
    "value_weighting/rho1_weighting.py": (6, ["unit/test_rho1_weighting.py"]),
    "losses/mtp_loss.py": (6, ["unit/test_losses.py"]),
    "data/sampling/bins.py": (4, _SAMPLING),
    "data/sampling/length_balance.py": (5, _SAMPLING),
    "data/sampling/pairs.py": (3, _SAMPLING),
    "data/sampling/plan.py": (5, _SAMPLING),
    "data/sampling/row_order.py": (5, _SAMPLING),
}
"""By module: how many mutants, and the test files that concern it."""

LIMIT = 150
"""Seconds of processor time that a mutant may take; a loop that never ends is noticed."""

Mutant = dict[str, Any]

# --- mutants -------------------------------------------------------------------------------------

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum"}
_NAMES |= {"zeros": "ones", "ones": "zeros", "zeros_like": "ones_like", "any": "all", "all": "any"}
_NAMES |= {"floor": "ceil", "ceil": "floor", "first": "last", "append": "extend"}
_MODULES = ("torch", "F", "np", "math")
_WRAPPERS = {"detach", "clone", "clamp", "float", "double", "masked_fill", "flip", "contiguous"}
_WRAPPERS |= {"sqrt", "square", "abs", "sorted", "set", "tuple", "list", "ceil", "where", "round"}


def sites(tree: ast.Module) -> Iterator[tuple[ast.AST, str, str]]:
    """Every node that can be changed, in how many ways, by name; what is said to people, types and
    defaults of protocols are left alone."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)):
            parts = [node]
        elif isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parts = [node.returns, *node.decorator_list]
            parts += [a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg)]
        elif isinstance(node, ast.ClassDef):
            parts = list(node.decorator_list)
        elif (isinstance(node, ast.Call) and _name(node.func) in ("info", "warning", "note")) or (
            isinstance(node, ast.Assign) and _name(node.targets[0]).startswith("__")
        ):
            parts = [node]
        for part in filter(None, parts):
            skipped.update(id(below) for below in ast.walk(part))
    for node in ast.walk(tree):
        if id(node) not in skipped and hasattr(node, "lineno"):
            for how in _ways(node):
                yield node, how, _function(tree, node)


def _ways(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _SWAPS:
        yield "operator"
    if (
        isinstance(node, (ast.BinOp, ast.AugAssign))
        and type(node.op) in _SWAPS
        and not any(isinstance(x, ast.JoinedStr) for x in ast.walk(node))
    ):
        yield "operator"
    if isinstance(node, ast.BoolOp):
        yield "operator"
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield "unary dropped"
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        yield "constant"
    if isinstance(node, ast.Call):
        name = _name(node.func)
        if name in _NAMES:
            yield "other function"
        if name in _WRAPPERS and (isinstance(node.func, ast.Attribute) or len(node.args) == 1):
            yield "call dropped"
        if node.keywords and node.keywords[-1].arg not in (None, "strict", "dtype", "device"):
            yield "keyword dropped"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "statement dropped"
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield "condition negated" if isinstance(node, ast.IfExp) else "condition false"


def _name(node: ast.AST) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def _function(tree: ast.Module, node: ast.AST) -> str:
    inside = [
        f
        for f in ast.walk(tree)
        if isinstance(f, (ast.FunctionDef, ast.ClassDef))
        and f.lineno <= node.lineno <= (f.end_lineno or 0)  # type: ignore[attr-defined]
    ]
    return ".".join(f.name for f in sorted(inside, key=lambda f: f.lineno))


def change(node: ast.AST, how: str) -> None:
    """Change a node in place."""
    if how == "operator":
        if isinstance(node, ast.Compare):
            node.ops = [_SWAPS[type(node.ops[0])]()]  # type: ignore[list-item]
        else:
            node.op = _SWAPS[type(node.op)]()  # type: ignore[attr-defined]
    elif how == "unary dropped":
        _become(node, node.operand)  # type: ignore[attr-defined]
    elif how == "constant":
        value = node.value  # type: ignore[attr-defined]
        node.value = (  # type: ignore[attr-defined]
            not value if isinstance(value, bool) else value + 1 if value in (0, 1) else value * 2
        )
    elif how == "other function":
        function = node.func  # type: ignore[attr-defined]
        key = "attr" if isinstance(function, ast.Attribute) else "id"
        setattr(function, key, _NAMES[_name(function)])
    elif how == "call dropped":
        function = node.func  # type: ignore[attr-defined]
        method = isinstance(function, ast.Attribute) and _name(function.value) not in _MODULES
        position = 1 if _name(function) == "where" else 0
        _become(node, function.value if method else node.args[position])  # type: ignore[attr-defined]
    elif how == "keyword dropped":
        node.keywords = node.keywords[:-1]  # type: ignore[attr-defined]
    elif how == "statement dropped":
        node.value = ast.Constant(None)  # type: ignore[attr-defined]
    elif how == "condition negated":
        node.test = ast.UnaryOp(ast.Not(), node.test)  # type: ignore[attr-defined]
    else:
        node.test = ast.Constant(False)  # type: ignore[attr-defined]


def _become(node: ast.AST, other: ast.AST) -> None:
    node.__class__ = other.__class__
    for key in list(vars(node)):
        if key not in ("lineno", "col_offset", "end_lineno", "end_col_offset"):
            delattr(node, key)
    for key, value in ast.iter_fields(other):
        setattr(node, key, value)


def draw(module: str, count: int, seed: int) -> list[Mutant]:
    """A seeded sample of a module's mutants, spread over its functions."""
    path = ROOT / "src" / "weighted_mtp" / module
    text = path.read_text(encoding="utf-8")
    found = list(sites(ast.parse(text)))
    by_function: dict[str, list[int]] = {}
    for number, (_, _, function) in enumerate(found):
        by_function.setdefault(function, []).append(number)
    dice = random.Random(f"{seed} {module}")
    for numbers in by_function.values():
        dice.shuffle(numbers)
    functions = sorted(by_function, key=lambda name: (-len(by_function[name]), name))
    chosen: list[int] = []
    while len(chosen) < min(count, len(found)):  # each function in turn, large ones first
        for name in functions:
            # A function of a dozen places gives two at a time.
            take = max(1, len(by_function[name]) // 10)
            chosen += [by_function[name].pop() for _ in range(min(take, len(by_function[name])))]
    return [_make(module, text, number) for number in sorted(chosen[:count])]


def _make(module: str, text: str, number: int) -> Mutant:
    tree = ast.parse(text)
    node, how, function = list(sites(tree))[number]
    shown: ast.AST = node
    if isinstance(node, (ast.If, ast.While)):
        shown = node.test
    before = ast.unparse(shown)
    statement = [
        s
        for s in ast.walk(tree)
        if isinstance(s, ast.stmt) and s.lineno <= node.lineno <= (s.end_lineno or 0)  # type: ignore[attr-defined]
    ][-1]
    first = statement.lineno
    last = statement.end_lineno or first
    if isinstance(statement, (ast.If, ast.While, ast.For, ast.With, ast.FunctionDef)):
        last = max(first, statement.body[0].lineno - 1)
    head = ast.unparse(statement).splitlines()[0]
    change(node, how)
    shown = node.test if isinstance(node, (ast.If, ast.While)) else node
    after = ast.unparse(ast.fix_missing_locations(shown))
    if how == "constant":  # a number alone says little
        before, after = f"{before} in {head}", f"{after}"
    return {
        "module": module,
        "line": node.lineno,  # type: ignore[attr-defined]
        "function": function,
        "how": how,
        "original": before[:200],
        "mutant": after[:200],
        "lines": [first, last],
        "source": ast.unparse(ast.fix_missing_locations(tree)),
    }


# --- running tests -------------------------------------------------------------------------------


class Copy:
    """A copy of `src`, compiled once, in which one module at a time is changed."""

    def __init__(self, folder: Path) -> None:
        self.src = folder / "src"
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "src", self.src, ignore=ignore)
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(self.src, quiet=1, invalidation_mode=mode)

    def write(self, module: str, source: str | None) -> None:
        """Change a module; None restores it."""
        path = self.src / "weighted_mtp" / module
        original = ROOT / "src" / "weighted_mtp" / module
        path.write_text(source if source is not None else original.read_text(encoding="utf-8"))
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()


def run_tests(src: Path, arguments: list[str], log: Path, plugin: object | None = None) -> int:
    """pytest's exit status in a fork; −1 after `LIMIT`, which holds where there is no plugin."""
    child = os.fork()
    if child == 0:
        os.setsid()
        if plugin is None:
            resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        with log.open("wb") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.chdir(ROOT)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(src), str(ROOT)])
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        sys.path[:0] = [str(src), str(ROOT)]
        plugins = [] if plugin is None else [plugin]
        options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", "--no-header"]
        status = 99
        try:
            status = int(pytest.main([*options, *arguments], plugins=plugins))
        finally:
            sys.stdout.flush()
            os._exit(status)
    started, limit = time.monotonic(), 10 * LIMIT
    status = -1
    while time.monotonic() - started < limit:
        done, raw = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(raw)
            break
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and what the tests left running
    if status == -1:
        os.waitpid(child, 0)
    return -1 if status == -signal.SIGXCPU else status


class Tracer:
    """A pytest plugin: which test runs which lines of a file, and for how long."""

    def __init__(self, path: Path, log: Path) -> None:
        self.path, self.out = str(path), log.with_suffix(".json")
        self.found: dict[str, Any] = {}
        self.lines: set[int] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.lines, self.started = set(), time.perf_counter()
        sys.settrace(self._call)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        sys.settrace(None)
        if self.lines:
            seconds = time.perf_counter() - self.started
            self.found[nodeid] = {"seconds": seconds, "lines": sorted(self.lines)}

    def pytest_sessionfinish(self) -> None:
        self.out.write_text(json.dumps(self.found))

    def _call(self, frame: Any, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename == self.path else None

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        self.lines.add(frame.f_lineno)
        return self._line


IGNORE = """
    @model_validator(mode="before")
    @classmethod
    def _ignore(cls, values):
        section, _, key = IGNORED[0].partition(".")
        if cls.__name__ == section and isinstance(values, dict):
            values = {name: value for name, value in values.items() if name != key}
        return values


IGNORED = [os.environ.get("IGNORED_OPTION", "")]
"""
"""At the end of `core/config/section.py`, whose last class is that of all sections: a recipe is
read as if one option had not been given."""


class Ignorer:
    """A pytest plugin: while the proof of an option is run, the option is ignored."""

    def __init__(self, log: Path) -> None:
        self.out = log.with_suffix(".json")
        self.found: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: Any) -> Iterator[None]:
        option = getattr(pyfuncitem, "callspec", None) and pyfuncitem.callspec.params.get("option")
        if option:
            pyfuncitem.module.BASE_LOOKS.clear()
            ignored = sys.modules["weighted_mtp.core.config.section"].IGNORED  # type: ignore[attr-defined]
            ignored[0] = _owners(pyfuncitem.module)[option]
        try:
            return (yield)
        except Exception as error:
            self.found[option] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
            raise
        finally:
            if option:
                self.found.setdefault(option, "survived")
                ignored[0] = ""

    def pytest_sessionfinish(self, session: Any) -> None:
        module = session.items[0].module
        rest = {o: [_owners(module)[o], p] for o, p in module.OPTIONS.items() if isinstance(p, str)}
        self.out.write_text(json.dumps([self.found, rest]))


def _owners(table: Any) -> dict[str, str]:
    """By option: its section's class and its name there."""
    return {option: f"{section.__name__}.{name}" for option, section, name in table.leaves()}


def ignore_options(place: Copy, log: Path, out: Path) -> None:
    """Ignore every option of a recipe in turn: its proof in `test_recipe_options` must fail."""
    module = "core/config/section.py"
    text = (ROOT / "src" / "weighted_mtp" / module).read_text(encoding="utf-8").rstrip()
    first = "from __future__ import annotations\n"
    more = "import os\nfrom pydantic import model_validator\n"
    place.write(module, text.replace(first, first + more) + "\n" + IGNORE)
    file = f"tests/{_OPTIONS}::test_an_option_has_an_effect"
    run_tests(place.src, [file], log, Ignorer(log))
    found, rest = json.loads(log.with_suffix(".json").read_text())
    for option, (owner, test) in rest.items():
        os.environ["IGNORED_OPTION"] = owner
        status = run_tests(place.src, ["-x", f"tests/{test}"], log)
        found[option] = f"{test} fails" if status else "survived"
    with out.open("a", encoding="utf-8") as lines:
        for option, by in found.items():
            print(f"  {option}: {by}")
            kept = {"module": "recipe options", "function": option, "original": option}
            kept |= {"mutant": "ignored", "status": "survived" if by == "survived" else "killed"}
            lines.write(json.dumps(kept | {"by": by}, ensure_ascii=False) + "\n")


def judge(
    place: Copy,
    mutant: Mutant,
    tests: list[str],
    traced: dict[str, Any],
    log: Path,
    thorough: bool = False,
) -> str:
    """`killed`, `timeout` or `survived`."""
    place.write(mutant["module"], mutant["source"])
    try:
        first, last = mutant["lines"]
        concerned = [
            (held["seconds"], name)
            for name, held in traced.items()
            if any(first <= line <= last for line in held["lines"])
        ]
        if concerned:
            names = [name for _, name in sorted(concerned)]
            status = run_tests(place.src, ["-x", *names], log)
            if status != 0:
                return "timeout" if status == -1 else "killed"
            if not thorough:
                return "survived"
        status = run_tests(place.src, ["-x", *tests], log)
        return "survived" if status == 0 else "timeout" if status == -1 else "killed"
    finally:
        place.write(mutant["module"], None)


def main() -> None:
    """Run the pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", help="modules, as data/packing.py")
    parser.add_argument("--each", type=int, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--again", action="store_true", help="only what survived in --out")
    parser.add_argument("--options", action="store_true", help="ignore recipe options instead")
    parser.add_argument("--table", action="store_true", help="print the shares in --out, and end")
    args = parser.parse_args()
    if args.table:
        print(table(args.out))
        return
    import datasets  # noqa: F401
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import torch._dynamo
    import torch.distributed.tensor
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    known, alike = read(args.out), read_alike()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        place, log = Copy(Path(name)), Path(name) / "log.txt"
        if args.options:
            ignore_options(place, log, args.out)
            return
        for module in args.only or MODULES:
            count, files = MODULES[module]
            tests = [f"tests/{file}" for file in files if (ROOT / "tests" / file).exists()]
            todo = draw(module, args.each or count, args.seed)
            if args.again:
                todo = [m for m in todo if known.get(key(m), {}).get("status") == "survived"]
                todo = [m for m in todo if key(m) not in alike]
            else:
                todo = [m for m in todo if key(m) not in known]
            if not todo:
                continue
            started = time.monotonic()
            traced: dict[str, Any] = {}
            if not args.again:
                tracer = Tracer(place.src / "weighted_mtp" / module, log)
                if run_tests(place.src, tests, log, tracer) != 0:
                    raise SystemExit(f"{module}: its tests fail unchanged:\n{log.read_text()}")
                traced = json.loads(log.with_suffix(".json").read_text())
            print(f"{module}: {len(traced)} tests, {time.monotonic() - started:.0f} s", flush=True)
            for mutant in todo:
                began = time.monotonic()
                found = judge(place, mutant, tests, traced, log, args.again)
                mutant |= {"status": found, "seconds": round(time.monotonic() - began, 1)}
                if args.again and found == "killed":
                    mutant["then"] = "a test that was added"
                if found == "killed":
                    failed = [
                        x for x in log.read_text().splitlines() if x.startswith(("FAILED", "ERROR"))
                    ]
                    mutant["by"] = failed[0].split(" - ")[0] if failed else "at import"
                with args.out.open("a", encoding="utf-8") as out:
                    kept = {k: v for k, v in mutant.items() if k not in ("source", "lines")}
                    out.write(json.dumps(kept, ensure_ascii=False) + "\n")
                where, was, now = f"{module}:{mutant['line']}", mutant["original"], mutant["mutant"]
                print(f"  {found:9}{where}  {was}  →  {now}", flush=True)


def key(mutant: Mutant) -> tuple[str, str, str, str]:
    """The same for the same change, wherever the lines moved."""
    return mutant["module"], mutant["function"], mutant["original"], mutant["mutant"]


def read(path: Path) -> dict[tuple[str, str, str, str], Mutant]:
    """The last word on each mutant."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {key(mutant): mutant for mutant in map(json.loads, lines)}


def read_alike() -> set[tuple[str, str, str, str]]:
    """Mutants that behave as the original does."""
    return {key(mutant) for mutant in json.loads(ALIKE.read_text(encoding="utf-8"))}


def table(path: Path) -> str:
    """Mutants, survivors and those that behave as the original does, by module, as Markdown."""
    reasons = read_alike()
    rows: dict[str, list[int]] = {}
    for mutant in read(path).values():
        row = rows.setdefault(mutant["module"], [0, 0, 0, 0])
        survived = mutant["status"] == "survived"
        same = survived and key(mutant) in reasons
        row[0] += not same
        row[1] += not same and (survived or "then" in mutant)
        row[2] += survived and not same
        row[3] += same
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    lines = [
        "| module | mutants | survived at first | survive | | alike |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for module, (made, first, left, same) in rows.items():
        share = f"{left / max(1, made):.0%}"
        lines.append(f"| {module} | {made} | {first} | {left} | {share} | {same} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
