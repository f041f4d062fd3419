"""Reference losses for Rho-1: what is stored is the model's cross-entropy, token by token, and a
model that scores on line gives the same training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.helpers import tiny_args, tiny_model
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    last_checkpoint,
    records,
    reference_request,
    train,
    train_curve,
    weights,
)

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import file_digest, read_jsonl, write_jsonl
from weighted_mtp.data.reference_losses import Fingerprint, ReferenceLosses
from weighted_mtp.data.tokenizers import ByteTokenizer
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_huggingface
from weighted_mtp.models.meta_mtp.checkpoints import save_native as save_in_our_own
from weighted_mtp.pipelines.reference import model_digest, prepare_reference_losses

rows_file = helpers_training.rows_file
critic_model = helpers_training.critic_model
reference_file = helpers_training.reference_file

LAYOUTS = {"native": save_in_our_own, "huggingface": save_huggingface}


def save(folder: Path, layout: str = "native", **shape) -> Path:
    """A model of bytes of another shape than the one that is trained, and its tokenizer."""
    ByteTokenizer().save(folder.with_name(folder.name + "-tokenizer"))
    files = sorted(folder.with_name(folder.name + "-tokenizer").iterdir())
    args = tiny_args(**{"vocab_size": 259, "max_seq_len": 64, "n_kv_heads": 2, **shape})
    LAYOUTS[layout](tiny_model(args, seed=5), folder, tokenizer_files=files)
    return folder


@pytest.fixture(scope="module")
def reference_model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "reference")


def open_losses(path: Path, data: Path, max_length: int = 64) -> ReferenceLosses:
    return ReferenceLosses(path, Fingerprint(file_digest(data), "bytes-v1", "short", max_length))


def direct(model_dir: Path, data: Path, max_length: int) -> list[torch.Tensor]:
    """Each row by itself, from whole logits: −log p(x_j | x_{<j}) of every response token."""
    model = load_meta_mtp_model(model_dir, device="cpu").double()
    collator = AlpacaCollator(ByteTokenizer(), "short", max_length)
    found = []
    for i, row in enumerate(read_jsonl(data)):
        example = collator.encode(row, i)
        ids = torch.tensor(example.ids)
        log_p = F.log_softmax(model(ids[None, :-1])[0, :, 0], dim=-1)
        per_token = -log_p[torch.arange(len(ids) - 1), ids[1:]].detach()
        found.append(per_token[example.prompt_length - 1 :])
    return found


@pytest.mark.parametrize("max_length", [64, 40, 22])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_stored_losses_are_the_cross_entropy_of_the_model(layout, max_length, tmp_path, rows_file):
    """With 40 a quarter of the rows is cut, with 22 some prompts leave no room for a response."""
    model = save(tmp_path / "model", layout)
    request = replace(
        reference_request(rows_file, model, tmp_path / "out.safetensors"), max_length=max_length
    )
    stored = open_losses(prepare_reference_losses(request), rows_file, max_length)
    expected = direct(model, rows_file, max_length)
    assert len(stored) == len(expected) == 24
    assert [len(stored[i]) for i in range(24)] == [len(x) for x in expected]
    gap = max(
        (float((stored[i] - x).abs().max()) for i, x in enumerate(expected) if len(x)), default=0
    )
    print(f"largest difference: {gap:.1e}")
    assert gap < 1e-5
    assert stored.fingerprint.model == model_digest(model)
    if max_length == 64:  # the last token is EOS, and it counts
        assert all(len(x) == len(row["output"]) + 1 for row, x in zip_rows(rows_file, expected))
    if max_length == 22:
        assert min(map(len, expected)) == 0 < max(map(len, expected))


def zip_rows(path: Path, losses: list[torch.Tensor]):
    return zip(read_jsonl(path), losses, strict=True)


def test_how_many_rows_are_scored_at_a_time_hardly_matters(tmp_path, rows_file, reference_model):
    found = []
    for size in (1, 7, 24):
        request = reference_request(rows_file, reference_model, tmp_path / f"{size}.safetensors")
        path = prepare_reference_losses(replace(request, batch_size=size))
        stored = open_losses(path, rows_file)
        found.append(torch.cat([stored[i] for i in range(24)]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=1e-5)


def test_a_run_and_a_checkpoint_are_models_too(tmp_path, rows_file, critic_model, reference_file):
    for path in (critic_model.parent, critic_model.parents[2]):
        out = prepare_reference_losses(reference_request(rows_file, path, tmp_path / "x"))
        stored, other = open_losses(out, rows_file), open_losses(reference_file, rows_file)
        assert all(torch.equal(stored[i], other[i]) for i in range(24))
        assert stored.fingerprint == other.fingerprint


def test_a_model_is_nowhere_behind_itself(tmp_path, rows_file, critic_model, reference_file):
    """Aligned token by token: the first step's excess of head 1 is 0, of the others it is not."""
    change = {"model__path": critic_model, "objective__rho1__reference": reference_file}
    assert train(tmp_path / "run", rows_file, "rho1", **change, training__steps=1) == 0
    rho1 = records(tmp_path / "run")[0]["rho1"]
    assert abs(rho1["mean_excess_head_1"]) < 1e-6
    assert abs(rho1["mean_excess_kept_head_1"]) < 1e-5
    assert rho1["mean_excess_kept_head_2"] > 1e-3


@pytest.mark.parametrize("scope", ["micro_batch", "step"])
def test_stored_and_on_line_are_one(scope, tmp_path, rows_file, reference_model):
    path = prepare_reference_losses(
        reference_request(rows_file, reference_model, tmp_path / "losses.safetensors")
    )
    sources = {"reference": path, "reference_model": reference_model}
    for name, source in sources.items():
        change = {f"objective__rho1__{name}": source, "objective__scope": scope}
        assert train(tmp_path / name, rows_file, "rho1", **change) == 0
    for key in ("loss", "grad_norm"):
        curves = [train_curve(tmp_path / name, key) for name in sources]
        gap = max(abs(a - b) for a, b in zip(*curves, strict=True))
        print(f"largest difference of {key}: {gap:.1e}")
        assert gap < 1e-4
    one, other = (weights(tmp_path / name) for name in sources)
    assert max(float((one[k] - other[k]).abs().max()) for k in one) < 1e-4
    assert len(list(last_checkpoint(tmp_path / "reference_model").rglob("*.safetensors"))) == 1


# --- what does not fit ---------------------------------------------------------------------------


def test_a_length_beyond_the_model(rows_file, reference_model):
    request = replace(reference_request(rows_file, reference_model), max_length=129)
    with pytest.raises(UserError, match=r"--max-length 129 exceeds the 128 positions"):
        prepare_reference_losses(request)


def test_a_length_of_just_all_positions(tmp_path):
    """74 positions are no multiple of what batches are padded to."""
    data = tmp_path / "long.jsonl"
    write_jsonl(data, [{"instruction": "x" * 20, "output": "y" * 90, "is_correct": True}])
    model = save(tmp_path / "model", max_seq_len=37)
    path = prepare_reference_losses(replace(reference_request(data, model), max_length=74))
    assert len(open_losses(path, data, 74)[0]) == 74 - len("x" * 20 + "\n>>>\n") - 1


def test_a_model_of_fewer_tokens(rows_file, tmp_path):
    with pytest.raises(UserError, match=r"the tokenizer has 259 tokens and the model only 100"):
        prepare_reference_losses(reference_request(rows_file, save(tmp_path / "m", vocab_size=100)))


def test_another_tokenizer_on_line(tmp_path, rows_file, reference_model, capsys, monkeypatch):
    from weighted_mtp.pipelines import reference

    class Other(ByteTokenizer):
        fingerprint = "bytes-v2"

    monkeypatch.setattr(reference, "load_tokenizer", lambda path: Other())
    change = {"objective__rho1__reference_model": reference_model}
    assert train(tmp_path / "run", rows_file, "rho1", **change) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the reference has another tokenizer (bytes-v2) than the model (bytes-v1)" in error
    assert not (tmp_path / "run").exists()


def test_a_reference_of_fewer_positions_on_line(tmp_path, rows_file, capsys):
    """Rows of up to 64 tokens, a model of 32 positions."""
    change = {"objective__rho1__reference_model": save(tmp_path / "short", max_seq_len=16)}
    assert train(tmp_path / "run", rows_file, "rho1", **change) == 2
    assert "32 positions" in capsys.readouterr().err.splitlines()[-1]


def test_nothing_is_left_by_a_start_that_failed(tmp_path, rows_file):
    with pytest.raises(UserError):
        prepare_reference_losses(reference_request(rows_file, tmp_path / "absent", tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


def test_the_command_stores_and_says_how_to_go_on(reference_model, rows_file, tmp_path, capsys):
    out = tmp_path / "losses.safetensors"
    command = ["prepare", "reference-losses", "--data", str(rows_file), "--out", str(out)]
    command += ["--model", str(reference_model), "--template", "short", "--max-length", "64"]
    assert main([*command, "--device", "cpu"]) == 0
    assert f"objective.rho1.reference={out}" in capsys.readouterr().out
    assert len(open_losses(out, rows_file)) == len(read_jsonl(rows_file))
    assert main([*command, "--batch-size", "0"]) == 2
    assert "--batch-size" in capsys.readouterr().err
