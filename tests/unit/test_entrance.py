"""`import weighted_mtp as wm`: its names, what importing it costs, and a session with it."""

import ast
import importlib
import pkgutil
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import SRC, tiny_args, tiny_model

import weighted_mtp as wm
from weighted_mtp.core.config import recipe as recipe_module
from weighted_mtp.core.errors import UserError
from weighted_mtp.models.meta_mtp import checkpoints
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint

PACKAGES = ["weighted_mtp"] + [
    found.name
    for found in pkgutil.walk_packages([str(SRC)], "weighted_mtp.")
    if found.ispkg and "weighted_mtp.vocabulary" not in found.name
]
SETTINGS = [
    *("model.architecture.dim=16", "model.architecture.n_layers=3", "model.architecture.n_heads=2"),
    *("model.architecture.n_future_tokens=2", "model.architecture.multiple_of=16"),
    *(
        "tokenizer.kind=bytes",
        "data.source=text",
        "data.text.validation_fraction=0",
        "data.max_length=32",
        "data.packing=true",
    ),
    *("training.steps=2", "training.batch_size=4", "training.micro_batch_size=2"),
    *("runtime.device=cpu", "runtime.compute_dtype=float32", "runtime.threads=1"),
]


def python(*arguments: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_names_what_it_exports(package):
    module = importlib.import_module(package)
    assert isinstance(module.__all__, list)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_same_names(package):
    """Lazy names are written twice: for the interpreter, and in `from … import NAME as NAME`."""
    module = importlib.import_module(package)
    source = Path(module.__file__).read_text(encoding="utf-8")
    if "_lazy import exports" not in source:
        return
    (block,) = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    typed = [(node.module, alias) for node in block.body for alias in node.names]
    assert sorted(alias.asname for _, alias in typed) == module.__all__
    for home, alias in typed:
        assert alias.name == alias.asname
        assert getattr(module, alias.name) is getattr(importlib.import_module(home), alias.name)


def test_a_name_that_is_missing():
    with pytest.raises(AttributeError, match="module 'weighted_mtp' has no attribute 'trian'"):
        wm.trian  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Sandbx'"):
        from weighted_mtp.evaluation.sandbox import Sandbx  # noqa: F401


# --- cost ----------------------------------------------------------------------------------------

HEAVY = {"torch", "numpy", "pydantic", "transformers"}


@pytest.mark.parametrize("flags", [[], ["-I", "-S"]], ids=["plain", "isolated"])
@pytest.mark.parametrize("package", ["weighted_mtp", "weighted_mtp.evaluation.sandbox"])
def test_importing_loads_nothing_heavy(flags, package):
    """The sandbox starts its processes with `-I -S`, without the packages of the environment."""
    code = f"import sys; sys.path.insert(0, {str(SRC.parent)!r}); import {package}; "
    loaded = set(python(*flags, "-c", code + "print(*sys.modules)").split())
    assert package in loaded
    assert not loaded & HEAVY
    ours = {name for name in loaded if name.startswith("weighted_mtp")}
    assert ours <= {
        *("weighted_mtp", "weighted_mtp._lazy", "weighted_mtp._moved"),
        *("weighted_mtp.evaluation", "weighted_mtp.evaluation.sandbox"),
    }


@pytest.mark.parametrize(
    "module", ["data.prepare.parts", "data.collators", "data.tokens.encode_rows", "data.rows.store"]
)
def test_a_process_that_prepares_or_tokenises_starts_without_torch(module):
    """It takes most of the seconds that such a process would need before it begins."""
    loaded = set(python("-c", f"import sys, weighted_mtp.{module}; print(*sys.modules)").split())
    assert not loaded & {"torch", "pydantic", "transformers"}


def test_planning_imports_no_trainer():
    code = "import sys, weighted_mtp.pipelines.planning.plan; print(*sys.modules)"
    loaded = python("-c", code).split()
    forbidden = (
        *("pipelines.compose", "pipelines.training.trainer", "pipelines.training.data"),
        *(
            "pipelines.checkpointing.sharded",
            "pipelines.checkpointing.remote",
            "pipelines.tracking",
        ),
        *("pipelines.evaluating", "evaluation.sandbox", "micro_tasks", "decoding", "cli"),
    )
    wrong = tuple(f"weighted_mtp.{name}" for name in forbidden)
    assert "weighted_mtp.pipelines.resolve" in loaded
    assert [name for name in loaded if name.startswith(wrong)] == []


# --- a session -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("def add(a, b):\n    return a + b\n" * 40)
    return path


def test_a_session(text, tmp_path):
    recipe = wm.load_recipe("baseline", "micro", [*SETTINGS, f"data.text.path={text}"])
    assert wm.plan(recipe).best(80).changes == ("training.micro_batch_size=4",)
    assert wm.estimate(recipe).tokens_per_step == 4 * 32

    result = wm.train(recipe, output_dir=tmp_path / "run")
    assert (result.step, result.finished) == (2, True)
    with pytest.raises(wm.UserError, match="holds a run already"):
        wm.train(recipe, output_dir=tmp_path / "run")
    longer = wm.train(output_dir=tmp_path / "run", resume=True, overrides=["training.steps=3"])
    assert longer.step == 3

    model = wm.load(tmp_path / "run", device="cpu")
    tokenizer = wm.load_tokenizer(tmp_path / "run")
    stopping = wm.Stopping(4, tokenizer.eos_id, decode=tokenizer.decode)
    prompt = tokenizer.encode("def add(")
    (completion,), _ = wm.complete(model.transformer, [prompt], stopping, wm.Sampling())
    assert len(completion.tokens) <= 4

    judged = wm.evaluate(
        tmp_path / "run", n_problems=2, max_new_tokens=4, max_difficulty=1, device="cpu"
    )
    assert judged.pass_at_1 is not None
    assert (tmp_path / "run" / "evaluation" / "micro-test.jsonl").exists()

    wm.save(model, tmp_path / "export", layout="hf")
    assert inspect_checkpoint(tmp_path / "export").layout == "huggingface"
    again = wm.load(tmp_path / "export", device="cpu")
    tokens = torch.tensor([prompt])
    assert torch.equal(again.full_forward(tokens)["logits"], model.full_forward(tokens)["logits"])
    assert wm.load_tokenizer(tmp_path / "export").fingerprint == tokenizer.fingerprint


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """How often recipe files are read, recipes validated and checkpoints' headers opened."""
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def counting(*args: Any) -> Any:
            counted[what] += 1
            return original(*args)

        monkeypatch.setattr(owner, name, counting)

    count(recipe_module, "_read_yaml", "read")
    count(recipe_module.Recipe, "model_validate", "validated")
    readers = dict(checkpoints._READERS)
    monkeypatch.setattr(checkpoints, "_READERS", readers)
    for layout, reader in readers.items():
        readers[layout] = lambda path, reader=reader: counted.update(["opened"]) or reader(path)
    return counted


def test_a_resume_and_an_evaluation_read_once(text, tmp_path, reads):
    recipe = wm.load_recipe("baseline", "micro", [*SETTINGS, f"data.text.path={text}"])
    wm.train(recipe, output_dir=tmp_path)
    reads.clear()
    wm.train(output_dir=tmp_path, resume=True)
    assert reads == {"read": 1, "validated": 1, "opened": 1}
    reads.clear()
    wm.train(output_dir=tmp_path, resume=True, overrides=["training.steps=3"])
    assert reads == {"read": 1, "validated": 2, "opened": 1}
    reads.clear()
    wm.evaluate(tmp_path, n_problems=1, max_new_tokens=2, max_difficulty=1, device="cpu")
    assert reads["opened"] == 1


def test_resuming_with_a_whole_recipe(text, tmp_path):
    settings = [*SETTINGS, f"data.text.path={text}"]
    recipe = wm.load_recipe("baseline", "micro", settings)
    assert wm.train(recipe, output_dir=tmp_path, resume="auto").step == 2
    other = wm.load_recipe(recipe, overrides=["runtime.seed=9"])
    with pytest.raises(UserError, match=r"cannot be resumed with runtime\.seed 0 → 9"):
        wm.train(other, output_dir=tmp_path, resume=True)
    longer = wm.load_recipe(recipe, overrides=["training.steps=3"])
    assert wm.train(longer, output_dir=tmp_path, resume="auto").step == 3


def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch):
    smaller = [
        *(setting for setting in SETTINGS if "data" not in setting and "bytes" not in setting),
        *("data.micro.n_problems=6", "data.micro.n_validation=2"),
    ]
    load = wm.load_recipe
    monkeypatch.setattr(
        wm, "load_recipe", lambda name, preset, given: load(name, preset, [*given, *smaller])
    )
    evaluate, train = wm.evaluate, wm.train
    monkeypatch.setattr(
        wm, "evaluate", lambda path, **_: evaluate(path, n_problems=1, max_new_tokens=2)
    )
    monkeypatch.setattr(
        wm, "train", lambda *a, **k: train(*a, **{**k, **({"overrides": []} if not a else {})})
    )
    monkeypatch.chdir(tmp_path)
    page = (SRC.parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    for number, example in enumerate(examples):
        (tmp_path / f"example_{number}.py").write_text(example, encoding="utf-8")
        found = runpy.run_path(str(tmp_path / f"example_{number}.py"))
    assert all(weight.grad is not None for weight in found["model"].parameters())
    assert set(re.findall(r"`(\w+)`", page.split("## Names")[1].split("`help")[0])) == set(
        wm.__all__
    )


def test_a_run_needs_a_recipe():
    with pytest.raises(UserError, match="name a recipe"):
        wm.train()


# --- load and save -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["native", "hf"])
@pytest.mark.parametrize("head", [False, True])
def test_what_is_saved_is_loaded(layout, head, tmp_path):
    adapter = wm.MetaLlamaMTPAdapter(tiny_model())
    if head:
        adapter.attach_value_head(None, "mlp")
    wm.save(adapter, tmp_path / "model", layout)
    found = wm.load(tmp_path / "model", device="cpu")
    assert (found.value_head is not None) == head
    wanted = adapter.state_dict()
    assert found.state_dict().keys() == wanted.keys()
    assert all(torch.equal(weight, wanted[name]) for name, weight in found.state_dict().items())


def test_a_bare_transformer_with_a_tokenizer(tmp_path):
    model = tiny_model(tiny_args(vocab_size=259))
    wm.save(model, tmp_path / "model", tokenizer=wm.make_tokenizer("bytes"))
    assert wm.load_tokenizer(tmp_path / "model").eos_id == 258
    with pytest.raises(UserError, match="exists"):
        wm.save(model, tmp_path / "model")
    wm.save(model, tmp_path / "model", overwrite=True)
    with pytest.raises(UserError, match="layout 'gguf' is not one of native, hf"):
        wm.save(model, tmp_path / "other", "gguf")


# --- mistakes in evaluate ------------------------------------------------------------------------


def test_evaluate_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'mirco': choose one of micro, humaneval"):
        wm.evaluate(tmp_path, "mirco")
    with pytest.raises(UserError, match="set allow_code_execution=True"):
        wm.evaluate(tmp_path, "humaneval")
    with pytest.raises(UserError, match="give a checkpoint"):
        wm.evaluate(None)
    with pytest.raises(UserError, match="no such directory"):
        wm.evaluate(tmp_path / "absent")
