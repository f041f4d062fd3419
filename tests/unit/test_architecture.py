"""The arrows of the house (docs: DESIGN §1): who may import whom, read from the syntax trees."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.helpers import SRC

CORE = {"core"}
FOUNDATIONS = {"models", "value_weighting", "data", "micro_tasks"} | CORE
WORKSHOPS = {"losses", "decoding", "evaluation", "runtime"}
# Besides itself, each room may import these; rooms on one floor do not import each other.
ALLOWED: dict[str, set[str]] = {
    "__init__": {"_lazy", "_moved", "api", "pipelines"} | WORKSHOPS | FOUNDATIONS,
    "_lazy": set(),
    "_moved": set(),
    "api": {"pipelines"} | WORKSHOPS | FOUNDATIONS,
    "__main__": {"cli"},
    "cli": {"pipelines", "analysis", "recipes"} | WORKSHOPS | FOUNDATIONS,
    "pipelines": {"recipes"} | WORKSHOPS | FOUNDATIONS,
    **dict.fromkeys(WORKSHOPS, FOUNDATIONS),
    "analysis": {"models", "data"} | CORE,
    "models": CORE,
    "data": CORE,
    "micro_tasks": CORE,
    "value_weighting": set(),
    "core": {"recipes"},
    "recipes": set(),  # YAML only
}
FILES = sorted(SRC.rglob("*.py"))
ROOT = SRC.parents[1]
EVERYWHERE = [p for room in ("benchmarks", "tests", "vendor") for p in ROOT.glob(f"{room}/**/*.py")]
EVERYWHERE = [*FILES, *sorted(EVERYWHERE)]
MAY_RUN_CODE = {
    "transformers": {"pipeline"},
    "datasets": {"load_dataset", "load_dataset_builder", "get_dataset_config_names"},
    "evaluate": {"load"},
}
"""Functions that take `trust_remote_code`, besides methods of the Auto classes."""


def room_of(path: Path) -> str:
    """The folder under weighted_mtp; the file's own name at the top."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return parts[0]


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """Full name of every module (or name in it) a file imports, lazily or not.

    Args:
        package: of the file, for relative imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and name_of(node.func).endswith("import_module"):
            assert node.args, "import_module(name)"
            literal = isinstance(node.args[0], ast.Constant)
            yield str(node.args[0].value) if literal else "a module named at run time"


def name_of(node: ast.AST) -> str:
    """`a.b.c` of a dotted expression, "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def wrong_arrows(room: str, source: str, package: tuple[str, ...]) -> list[str]:
    """Imports in a file of `room` that point upwards, sideways, or to vendor."""
    wrong = []
    for name in imported(ast.parse(source), package):
        top, *rest = name.split(".")
        if top == "weighted_mtp":
            target = rest[0] if rest else ""
            if (
                target != room
                and target not in ALLOWED[room]
                and target not in ("__version__", "_lazy")
            ):
                wrong.append(name)
        elif top in ("vendor", "tests", "benchmarks") or (
            room == "value_weighting" and top not in {"torch"} | sys.stdlib_module_names
        ):
            wrong.append(name)
    return wrong


def unsafe_calls(source: str, may_execute: bool = False) -> list[str]:
    """Calls of `exec` and `eval`, and of `torch.load` without `weights_only=True`."""
    tree, found = ast.parse(source), []
    loads = {"torch.load"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            loads |= {alias.asname or "load" for alias in node.names if alias.name == "load"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = name_of(node.func)
        if called in ("exec", "eval", "builtins.exec", "builtins.eval") and not may_execute:
            found.append(f"line {node.lineno}: {called}")
        if called in loads:
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            only = given.get("weights_only")
            if not (isinstance(only, ast.Constant) and only.value is True):
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
    return found


def trusting_calls(source: str) -> list[str]:
    """Calls that could run a model's or a data set's own code: those of transformers and datasets
    that take `trust_remote_code`, and are not told `trust_remote_code=False` in so many words."""
    tree, found = ast.parse(source), []
    original = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            original |= {alias.asname: alias.name for alias in node.names if alias.asname}
        if isinstance(node, ast.ImportFrom) and node.module:
            original |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = name_of(node.func).partition(".")
        *_, owner, called = ("", *(original.get(first, first) + dot + rest).split("."))
        library = original.get(first, first).split(".")[0]
        automatic = owner.startswith("Auto") and called in ("from_pretrained", "from_config")
        if automatic or called in MAY_RUN_CODE.get(library, ()):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            said = given.get("trust_remote_code")
            if not (isinstance(said, ast.Constant) and said.value is False):
                found.append(f"line {node.lineno}: {called} without trust_remote_code=False")
    return found


def test_every_room_has_its_place():
    assert FILES
    assert {room_of(path) for path in FILES} <= set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_arrows_point_down(path):
    package = ("weighted_mtp", *path.relative_to(SRC).parent.parts)
    assert wrong_arrows(room_of(path), path.read_text(encoding="utf-8"), package) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_no_unsafe_call(path):
    may_execute = path.relative_to(SRC).as_posix() == "evaluation/sandbox/worker.py"
    assert unsafe_calls(path.read_text(encoding="utf-8"), may_execute) == []


TRUSTED = [ROOT / "tests/unit/test_remote_code.py", ROOT / "benchmarks/remote_generate.py"]
"""These open exports that they have just written, to run the modelling code in them."""


@pytest.mark.parametrize(
    "path",
    [path for path in EVERYWHERE if path not in TRUSTED],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_call_trusts_remote_code(path):
    assert trusting_calls(path.read_text(encoding="utf-8")) == []


# --- the guards themselves -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("models", "from weighted_mtp.runtime import distributed"),
        ("models", "import weighted_mtp.data.collators"),
        ("models", "from weighted_mtp import data"),
        ("models", "from ..data import collators"),
        ("models", "def f():\n    from weighted_mtp.losses import mtp_loss"),
        ("models", "import importlib\nimportlib.import_module('weighted_mtp.data')"),
        ("models", "import vendor.meta_llama"),
        ("data", "from weighted_mtp.models.meta_mtp import transformer"),
        ("data", "from weighted_mtp.evaluation.sandbox.host import Sandbox"),
        ("losses", "from weighted_mtp.runtime import distributed"),
        ("decoding", "from weighted_mtp.pipelines.training.trainer import Trainer"),
        ("pipelines", "from weighted_mtp.cli import main"),
        ("analysis", "from weighted_mtp.pipelines import metrics_utils"),
        ("value_weighting", "from weighted_mtp.core import types"),
        ("value_weighting", "import numpy as np"),
        ("core", "from weighted_mtp.data import tokenizers"),
        ("cli", "from vendor.meta_llama import Transformer"),
        ("__init__", "from weighted_mtp.cli.main import main"),
    ],
)
def test_a_wrong_arrow_is_seen(room, source):
    assert len(wrong_arrows(room, source, ("weighted_mtp", room))) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("models", "from weighted_mtp.core.errors import UserError\nimport transformers"),
        ("models", "from . import rotary\nfrom .meta_mtp import rotary\nfrom ..core import types"),
        ("evaluation", "from weighted_mtp.models import meta_mtp\nfrom weighted_mtp import data"),
        ("cli", "from weighted_mtp import __version__, pipelines, analysis, runtime"),
        ("value_weighting", "import math\nimport torch.nn.functional as F\nfrom . import controls"),
    ],
)
def test_a_right_arrow_is_left_alone(room, source):
    assert wrong_arrows(room, source, ("weighted_mtp", room)) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "from torch import load as read\nread(path)",
        "exec(code)",
        "x = eval('1')",
    ],
)
def test_an_unsafe_call_is_seen(source):
    assert len(unsafe_calls(source)) == 1


@pytest.mark.parametrize(
    "source", ["torch.load(path, weights_only=True)", "model.eval()", "json.load(file)"]
)
def test_a_safe_call_is_left_alone(source):
    assert unsafe_calls(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "AutoTokenizer.from_pretrained(path)",
        "transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)",
        "import transformers as t\nt.AutoConfig.from_pretrained(path, trust_remote_code=trusted)",
        "from transformers import AutoTokenizer as T\nT.from_pretrained(path, **options)",
        "AutoModel.from_config(config)",
        "from datasets import load_dataset as load\nload(name)",
        "import datasets\ndatasets.load_dataset(name, streaming=True)",
        "from transformers import pipeline\npipeline('text-generation', model)",
    ],
)
def test_a_trusting_call_is_seen(source):
    assert len(trusting_calls(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "AutoTokenizer.from_pretrained(path, trust_remote_code=False)",
        "import datasets\ndatasets.load_dataset(name, trust_remote_code=False)",
        "LlamaForCausalLM.from_pretrained(path)",  # runs transformers' own code alone
        "Adapter.from_pretrained(path)",
        "rows.load_dataset(name)",
    ],
)
def test_a_call_that_trusts_nothing_is_left_alone(source):
    assert trusting_calls(source) == []
