"""Reference losses for Rho-1: what is stored is the model's cross-entropy, token by token, and a
model that scores on line gives the same training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tests.helpers import tiny_args, tiny_model
from tests.integration import helpers_training
from tests.integration.helpers_training import (
    last_checkpoint,
    records,
    reference_request,
    train,
    train_arguments,
    train_curve,
    weights,
)

from weighted_mtp.cli.main import main
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.batches import pack_batch, pad_batch
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import file_digest, read_jsonl, write_jsonl
from weighted_mtp.data.reference_losses import Fingerprint, ReferenceLosses
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_huggingface
from weighted_mtp.models.meta_mtp.checkpoints import save_native as save_in_our_own
from weighted_mtp.pipelines.training.objectives.rho1 import Rho1
from weighted_mtp.pipelines.training.reference import (
    model_digest,
    prepare_reference_losses,
    token_losses,
)

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
    """Each row by itself, from whole logits: `[tokens, heads]` −log p_k(x_j | x_{≤ j−k}) of every
    response token, by a loop over tokens and heads."""
    model = load_meta_mtp_model(model_dir, device="cpu").double()
    collator = AlpacaCollator(ByteTokenizer(), "short", max_length)
    found = []
    for i, row in enumerate(read_jsonl(data)):
        example = collator.encode(row, i)
        ids = torch.tensor(example.ids)
        logits = model(ids[None, :-1], return_all_heads=True)[0].detach()  # [S, n, V]
        n = logits.shape[1]
        losses = torch.zeros(len(ids) - example.prompt_length, n, dtype=torch.float64)
        for j in range(example.prompt_length, len(ids)):
            for k in range(1, n + 1):
                if j >= k:
                    log_p = F.log_softmax(logits[j - k, k - 1], dim=-1)
                    losses[j - example.prompt_length, k - 1] = -log_p[ids[j]]
        found.append(losses)
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
    assert stored.heads == 3
    assert [stored[i].shape for i in range(24)] == [x.shape for x in expected]
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


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("source", ["reference", "reference_model"])
@pytest.mark.parametrize("heads", ["same", "next"])
def test_a_model_is_nowhere_behind_itself(
    heads, source, packing, tmp_path, rows_file, critic_model, reference_file
):
    """Aligned token by token: the first step's excess is 0 in every head. Against the next-token
    loss it is 0 in the first alone."""
    change = {
        "model__path": critic_model,
        f"objective__rho1__{source}": reference_file if source == "reference" else critic_model,
        "objective__rho1__reference_heads": heads,
        "data__packing": packing,
    }
    assert train(tmp_path / "run", rows_file, "rho1", **change, training__steps=1) == 0
    rho1 = records(tmp_path / "run")[0]["rho1"]
    for head in (1, 2, 3):
        equal = head == 1 or heads == "same"
        assert (abs(rho1[f"mean_excess_head_{head}"]) < 1e-6) == equal
        assert (abs(rho1[f"mean_excess_kept_head_{head}"]) < 1e-5) == equal


def test_packed_and_padded_batches_have_the_same_losses(rows_file, reference_model):
    """Documents that share a row: no loss crosses from one into the other."""
    model = load_meta_mtp_model(reference_model, device="cpu").double()
    collator = AlpacaCollator(ByteTokenizer(), "short", 64)
    examples = [collator.encode(row, i) for i, row in enumerate(read_jsonl(rows_file)[:8])]
    padded = pad_batch(examples, collator.tokenizer.pad_id, 16)
    packed = pack_batch([examples[:3], examples[3:4], examples[4:]], collator.tokenizer.pad_id)
    one, other = (token_losses(model, batch, torch.float32) for batch in (padded, packed))
    S = other.shape[1]
    torch.testing.assert_close(one[:, :S], other, rtol=0, atol=1e-12)
    assert float(one[:, S:].abs().max()) == 0  # padding
    for i, expected in enumerate(direct(reference_model, rows_file, 64)[:8]):
        start = examples[i].prompt_length
        torch.testing.assert_close(one[i, start : start + len(expected)], expected)


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize(
    ("n", "words"),
    [(1, "has 1 head, the policy 3; heads 2 to 3"), (2, "has 2 heads, the policy 3; head 3")],
)
def test_a_reference_of_fewer_heads(n, words, online, tmp_path, rows_file, monkeypatch, capsys):
    """Its own head k where it has one, else its next-token loss, which is said once."""
    model = save(tmp_path / "reference", n_future_tokens=n)
    request = reference_request(rows_file, model, tmp_path / "losses.safetensors")
    path = model if online else prepare_reference_losses(request)
    seen: list[torch.Tensor] = []
    original = Rho1._reference

    def look(self, pool):
        reference = original(self, pool)
        for i, row in enumerate(pool.rows.tolist()):
            own = expected[row]
            labels = pool.labels[i]
            start = int((labels != IGNORE_INDEX).int().argmax())
            for t in range(pool.signal.shape[1]):
                for k in range(1, 4):
                    if pool.valid[i, t, k - 1]:
                        column = k - 1 if k <= n else 0
                        seen.append(reference[i, t, k - 1] - own[t + k - start, column])
        return reference

    expected = direct(model, rows_file, 64)
    monkeypatch.setattr(Rho1, "_reference", look)
    source = "reference_model" if online else "reference"
    change = {f"objective__rho1__{source}": path, "training__steps": 1}
    assert train(tmp_path / "run", rows_file, "rho1", **change) == 0
    assert float(torch.stack(seen).abs().max()) < 1e-5
    told = [line for line in capsys.readouterr().err.splitlines() if "reference_heads" in line]
    assert len(told) == 1
    assert words in told[0]


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


def test_losses_of_the_next_token_alone_are_refused(tmp_path, rows_file, reference_file, capsys):
    """The format of earlier versions: `losses` had one column."""
    path = tmp_path / "old.safetensors"
    with safe_open(reference_file, framework="pt") as file:
        header = {**file.metadata(), "format": "weighted-mtp reference losses v2"}
        tensors = {name: file.get_tensor(name) for name in ("losses", "offsets")}
    save_file({**tensors, "losses": tensors["losses"][:, 0].contiguous()}, path, metadata=header)
    arguments = train_arguments(
        tmp_path / "run", rows_file, "rho1", objective__rho1__reference=path
    )
    for more in ((), ("--dry-run",)):
        assert main(["train", *arguments, *more]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {path}: written by another version (format 'weighted-mtp")
        assert error.endswith("score the data again with: weighted-mtp prepare reference-losses")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["absolute", "difficult", "signed"])
def test_modes_that_keep_noise_are_told(mode, tmp_path, rows_file, reference_file, capsys):
    change = {"objective__rho1__mode": mode, "objective__rho1__reference": reference_file}
    arguments = train_arguments(tmp_path / "run", rows_file, "rho1", **change)
    assert main(["train", *arguments, "--dry-run"]) == 0
    warned = f"objective.rho1.mode {mode} keeps most of the noise" in capsys.readouterr().err
    assert warned == (mode != "signed")


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
    from weighted_mtp.pipelines.training import reference

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
