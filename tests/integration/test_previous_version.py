"""What version 0.1.0 wrote still opens: runs, checkpoints whole and in parts, an export, recipes.

`tests/data/version_0_1_0.tar.xz` was written by that version: `run` (verifiable with a critic
stage, stopped after 2 of 4 steps), `sharded` (a critic, FSDP2 on two processes), `hf` (an
export with one extra head and a value head) and `expected.json` (log-probabilities and values of
one text under each model).
"""

import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from weighted_mtp.cli.main import main
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.pipelines.metrics_utils import read_metrics

ARCHIVE = Path(__file__).parents[1] / "data" / "version_0_1_0.tar.xz"
TEXT = [257, *b"def f(x):\n    return x + 1\n", 258]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked once."""
    folder = tmp_path_factory.mktemp("version_0_1_0")
    with tarfile.open(ARCHIVE) as archive:
        if sys.version_info >= (3, 12):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)
    return folder


@pytest.fixture
def old(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in. The runs name their rows by a relative path."""
    shutil.copytree(unpacked, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def figures(model_dir: Path) -> dict[str, object]:
    """What `expected.json` holds of one model."""
    adapter = MetaLlamaMTPAdapter.from_pretrained(model_dir, "cpu", None, True)
    tokens = torch.tensor([TEXT])
    with torch.no_grad():
        out = adapter.full_forward(tokens)
    logprobs = out["logits"].log_softmax(-1)  # [1, S, n, V]
    per_head = [
        float(logprobs[0, : -1 - k, k].gather(-1, tokens[0, 1 + k :, None]).sum())
        for k in range(logprobs.shape[2])
    ]
    return {"logprob": per_head, "value": float(out["value_logits"].sum())}


@pytest.mark.parametrize(
    "name",
    [
        "run/checkpoints/step-00000002/model",
        "run/critic/checkpoints/step-00000002/model",
        "hf",
        "whole",
    ],
)
def test_models_give_the_same_numbers(old, name):
    if name == "whole":
        assert main(["convert", "sharded/checkpoints/step-00000002", "whole"]) == 0
    expected = json.loads((old / "expected.json").read_text())[name]
    found = figures(old / name)
    assert found["logprob"] == pytest.approx(expected["logprob"], rel=1e-6)
    assert found["value"] == pytest.approx(expected["value"], rel=1e-5)


def test_an_export_converts_with_its_heads(old):
    assert main(["convert", "hf", "again"]) == 0
    assert figures(old / "again") == figures(old / "hf")


@pytest.mark.parametrize("name", ["run", "sharded"])
def test_a_run_resumes_to_its_end(old, name):
    assert main(["train", "--resume", "--output-dir", name]) == 0
    steps = [r["step"] for r in read_metrics(old / name / "metrics.jsonl") if r["kind"] == "train"]
    assert sorted(set(steps))[-2:] == [3, 4]
    assert (old / name / "checkpoints" / "step-00000004" / "COMPLETE").exists()


def test_a_run_can_be_looked_at(old, capsys):
    assert main(["inspect", "run/checkpoints/step-00000002/model"]) == 0
    assert main(["report", "run"]) == 0
    assert (old / "run" / "report.html").exists()
    capsys.readouterr()
