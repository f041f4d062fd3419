"""Every example runs on a tiny size, and is short."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.helpers import ROOT

from weighted_mtp.data.datasets import read_jsonl

EXAMPLES = ROOT / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_an_example_fits_on_a_page_and_is_listed(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80
    listed = (ROOT / "docs/examples.md").read_text(encoding="utf-8")
    assert path.name in listed or path.parent.name in listed


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path):
    """`make notebooks` runs them; here their code is only compiled."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for cell in code:
        compile("".join(cell["source"]), str(path), "exec")


def test_the_loss_in_a_plain_loop():
    once = example("plain_loop").main(["--steps", "3", "--micro-batches", "1"])
    cut = example("plain_loop").main(["--steps", "3", "--micro-batches", "4"])
    assert once[-1] < once[0]
    assert cut == pytest.approx(once, abs=1e-4)


def test_fsdp_by_hand():
    from torch.distributed.fsdp import fully_shard  # noqa: F401

    losses = example("fsdp_by_hand").main(["--steps", "3"])
    assert losses[-1] < losses[0]


def test_inside_the_trainer_of_transformers(folder):
    pytest.importorskip("accelerate")
    losses = example("hf_trainer").main(["--steps", "3", "--out", str(folder / "trainer")])
    assert losses[-1] < losses[0]


def test_heads_for_a_model_of_transformers(folder):
    assert example("hf_heads").main(["--steps", "3", "--out", str(folder / "heads")]) >= 1


def test_decoding_and_evaluating_then_expert_iteration(folder, monkeypatch):
    assert 0 <= example("decode_and_evaluate").main(["--out", str(folder / "tiny")]) <= 1
    expert = example("expert_iteration")
    row = {"instruction": "add", "input": "", "output": "return 1", "task_id": "a", "metadata": {}}
    judged = SimpleNamespace(rows=[row | {"is_correct": True}, row | {"is_correct": False}] * 20)
    monkeypatch.setattr(expert, "attempt_rows", lambda *_: judged)  # a tiny model is never right
    sizes = [
        "--rounds",
        "1",
        "--problems",
        "1",
        "--test-problems",
        "1",
        "--samples",
        "1",
        "--steps",
        "1",
    ]
    words = ["expert_iteration.py", str(folder / "tiny/run"), "--out", str(folder / "expert")]
    monkeypatch.setattr("sys.argv", [*words, *sizes])
    expert.main()
    learned = read_jsonl(folder / "expert/round-1/rows.jsonl")
    assert len(learned) == 20
    assert all(row["is_correct"] for row in learned)
    assert (folder / "expert/round-1/run/config.yaml").exists()
