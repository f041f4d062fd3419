"""`weighted-mtp verify`: faithful exports pass in every layout, and what can go wrong is caught."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.helpers import tiny_args, tiny_model

from weighted_mtp.cli.main import main
from weighted_mtp.core.sums import Sums, sums_of, write_sums
from weighted_mtp.data.tokens.tokenizers import MICRO_VOCABULARY
from weighted_mtp.evaluation.export_check import HeadCheck, copies, round_alike
from weighted_mtp.models.meta_mtp.args import Family
from weighted_mtp.models.meta_mtp.checkpoints import (
    load_meta_mtp_model,
    save_huggingface,
    save_native,
)
from weighted_mtp.models.meta_mtp.layouts.huggingface import to_halves

ARGS = tiny_args(dim=16, n_layers=6, n_kv_heads=2, vocab_size=1024)
HEADS, PLAIN = "mtp/mtp_heads.safetensors", "model.safetensors"
SUMS = "mtp/sums.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A native model `m`, and its export `e` with head 2 as a speculator."""
    folder = tmp_path_factory.mktemp("export")
    save_native(tiny_model(ARGS), folder / "m", tokenizer_files=sorted(MICRO_VOCABULARY.iterdir()))
    assert main(["convert", str(folder / "m"), str(folder / "e"), "--to", "eagle3"]) == 0
    return folder


@pytest.fixture
def export(place, tmp_path) -> Path:
    return Path(shutil.copytree(place / "e", tmp_path / "e"))


def verify(capsys, model: Path, export: Path, *options: str) -> tuple[int, list[str]]:
    """Exit status and printed lines."""
    capsys.readouterr()
    status = main(
        ["verify", str(model), str(export), "--tokens", "32", "--device", "cpu", *options]
    )
    return status, capsys.readouterr().out.splitlines()


def rewrite(export: Path, name: str, change) -> None:
    """Change the tensors of a file, and make the sums fit: the fault is in what was written."""
    state = load_file(export / name)
    change(state)
    save_file(state, export / name, metadata={"format": "pt"})
    fix_sums(export)


def fix_sums(export: Path) -> None:
    names = Sums.read(export, SUMS).expected
    write_sums(export, sums_of(export, (export / name for name in names)), SUMS)


def weights(place: Path) -> dict[str, torch.Tensor]:
    return load_meta_mtp_model(place / "m", device="cpu").state_dict()


def verdicts(lines: list[str]) -> dict[tuple[str, str], str]:
    """By head and reader."""
    cells = [line.split() for line in lines]
    return {(row[0], row[1]): row[-1] for row in cells if row and row[0].isdigit()}


def test_a_faithful_export_is_equal(place, export, capsys):
    status, lines = verify(capsys, place / "m", export)
    assert (status, lines[-1]) == (0, "equal")
    found = verdicts(lines)
    assert set(found) == {
        *((str(k), "weighted-mtp") for k in (1, 2, 3)),
        ("1", "transformers"),
        ("2", "eagle3"),
    }
    assert set(found.values()) == {"equal"}
    assert lines[0].split()[0] == "head"


@pytest.mark.parametrize("layout", ["native", "mtp_llama"])
def test_other_layouts(place, tmp_path, capsys, layout):
    assert main(["convert", str(place / "m"), str(tmp_path / "o"), "--to", layout]) == 0
    status, lines = verify(capsys, place / "m", tmp_path / "o")
    assert status == 0, lines
    assert len(verdicts(lines)) == 3


@pytest.mark.parametrize(
    "family",
    [
        Family("qwen3", qk_norm=True, head_dim=8),
        Family("phi3", rotary_dim=4, head_dim=8),
    ],
    ids=lambda family: family.name,
)
def test_other_families(tmp_path, capsys, family):
    save_native(tiny_model(tiny_args(family=family)), tmp_path / "m")
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "e"), "--to", "hf"]) == 0
    status, lines = verify(capsys, tmp_path / "m", tmp_path / "e")
    assert status == 0, lines
    assert verdicts(lines)["1", "transformers"] == "equal"
    key = "extra_heads.0.attention.wk.weight"
    rewrite(
        tmp_path / "e", HEADS, lambda s: s[key].copy_(to_halves(s[key], 4, family.rotary_dim or 8))
    )
    status, lines = verify(capsys, tmp_path / "m", tmp_path / "e")
    assert status == 1
    assert "head 2 (weighted-mtp): attention.wk.weight has its rows in the wrong rotary order" in (
        lines
    )


def test_a_speculator_alone_and_rounded_weights(place, tmp_path, capsys):
    (tmp_path / "ids.json").write_text(json.dumps(list(range(0, 1000, 3))))
    command = ["convert", str(place / "m"), str(tmp_path / "o"), "--to", "speculators"]
    command += ["--dtype", "bfloat16", "--draft-tokens", str(tmp_path / "ids.json")]
    assert main(command) == 0
    status, lines = verify(capsys, place / "m", tmp_path / "o" / "speculators")
    assert status == 0, lines
    assert set(verdicts(lines)) == {
        ("1", "weighted-mtp"),
        ("1", "transformers"),
        ("2", "weighted-mtp"),
        ("2", "speculators"),
    }
    assert any("rounded to the export's bfloat16" in line for line in lines)


# --- what must be caught -------------------------------------------------------------------------


def test_heads_swapped(place, export, capsys):
    def swap(state):
        for key in [key for key in state if key.startswith("extra_heads.0.")]:
            other = key.replace("heads.0.", "heads.1.")
            state[key], state[other] = state[other], state[key]

    rewrite(export, HEADS, swap)
    status, lines = verify(capsys, place / "m", export)
    assert (status, lines[-1]) == (1, "DIFFERENT")
    found = verdicts(lines)
    assert (found["1", "weighted-mtp"], found["2", "weighted-mtp"]) == ("equal", "DIFFERS")
    assert found["2", "eagle3"] == "equal"
    assert float(lines[3].split()[2]) > 0.1  # head 2's logits
    assert "head 2 (weighted-mtp): is head 3 of MODEL" in lines
    assert "head 3 (weighted-mtp): is head 2 of MODEL" in lines


def test_a_norm_lost(place, export, capsys):
    rewrite(export, HEADS, lambda s: s["extra_heads.1.attention_norm.weight"].fill_(1))
    status, lines = verify(capsys, place / "m", export)
    assert status == 1
    assert "head 3 (weighted-mtp): attention_norm.weight is lost (all ones)" in lines
    assert verdicts(lines)["2", "weighted-mtp"] == "equal"


def test_a_head_left_at_its_starting_copy(place, export, capsys):
    def reset(state):
        last = f"layers.{ARGS.n_layers - ARGS.n_future_tokens}."
        for name, weight in weights(place).items():
            if name.startswith(last):
                state[name.replace(last, "extra_heads.1.")] = weight.clone()

    rewrite(export, HEADS, reset)
    status, lines = verify(capsys, place / "m", export)
    assert status == 1
    note = "is head 1 of MODEL; is a copy of the export's head 1 (an untrained start)"
    assert f"head 3 (weighted-mtp): {note}" in lines


def test_another_tokenizer(place, export, capsys):
    path = export / "tokenizer.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = fields["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    path.write_text(json.dumps(fields), encoding="utf-8")
    fix_sums(export)
    status, lines = verify(capsys, place / "m", export)
    assert status == 1
    assert sum(line.startswith("tokenizer: token ") for line in lines) == 2  # both readers
    assert set(verdicts(lines).values()) == {"equal"}


@pytest.mark.parametrize("where", ["trunk", "head 3"])
def test_wrong_rotary_order(place, export, capsys, where):
    if where == "trunk":
        key = "model.layers.1.self_attn.q_proj.weight"
        right = weights(place)["layers.1.attention.wq.weight"]
        rewrite(export, PLAIN, lambda s: s[key].copy_(right))
    else:
        key = "extra_heads.1.attention.wk.weight"
        rewrite(export, HEADS, lambda s: s[key].copy_(to_halves(s[key], 2, 4)))
    status, lines = verify(capsys, place / "m", export)
    assert status == 1
    found = verdicts(lines)
    assert any("rows in the wrong rotary order" in line for line in lines)
    assert found["3", "weighted-mtp"] == "DIFFERS"
    assert found["1", "transformers"] == ("DIFFERS" if where == "trunk" else "equal")


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["midlayer.hidden_norm.weight"].fill_(1),
        lambda s: s["fc.weight"].copy_(s["fc.weight"].roll(16, 1)),
        lambda s: s.pop("midlayer.mlp.up_proj.weight"),
        lambda s: s.update({"norm.weight": torch.ones(5)}),
        lambda s: s.update({"d2t": torch.arange(1024)}),
        lambda s: s.update({"d2t": torch.arange(3)}),
    ],
)
def test_a_speculator_that_is_not_head_2(place, export, capsys, change):
    rewrite(export, "eagle3/model.safetensors", change)
    status, lines = verify(capsys, place / "m", export)
    assert status == 1
    assert {k for k, v in verdicts(lines).items() if v == "DIFFERS"} == {("2", "eagle3")}


def test_a_weight_that_the_text_does_not_meet(place, export, capsys):
    rewrite(export, PLAIN, lambda s: s["model.embed_tokens.weight"][1023].add_(1))
    status, lines = verify(capsys, place / "m", export)
    assert status == 1
    assert "weights: tok_embeddings.weight differs" in lines


def test_fewer_heads_and_settings(place, tmp_path, capsys):
    model = tiny_model(replace(ARGS, n_layers=5, n_future_tokens=2, rope_theta=500.0))
    full = weights(place)
    model.load_state_dict({key: full[key] for key in model.state_dict()})
    save_huggingface(model, tmp_path / "o", tokenizer_files=sorted(MICRO_VOCABULARY.iterdir()))
    status, lines = verify(capsys, place / "m", tmp_path / "o")
    assert status == 1
    assert "heads: MODEL has 3, the export 2" in lines
    assert any("rope_theta 10000.0 / 500.0" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 800}, "vocabulary: MODEL has 1024"),
        ({"n_layers": 5}, "shape: "),
    ],
)
def test_another_architecture(place, tmp_path, capsys, changes, message):
    other = tiny_model(replace(ARGS, **changes))
    save_huggingface(other, tmp_path / "o", tokenizer_files=sorted(MICRO_VOCABULARY.iterdir()))
    status, lines = verify(capsys, place / "m", tmp_path / "o")
    assert status == 1
    assert any(line.startswith(message) for line in lines)


def test_a_speculator_that_cannot_be_read(place, export, capsys):
    path = export / "eagle3" / "config.json"
    fields = json.loads(path.read_text())
    for changed in ({"eagle_aux_hidden_state_layer_ids": [0, 1, 9]}, {"hidden_size": "many"}):
        path.write_text(json.dumps({**fields, **changed}))
        fix_sums(export)
        status, lines = verify(capsys, place / "m", export)
        assert status == 1
        assert verdicts(lines)["2", "eagle3"] == "DIFFERS"


def test_an_untrained_head_of_the_model_is_told(place, tmp_path, capsys):
    source, out = str(place / "m"), str(tmp_path / "o")
    assert main(["convert", source, out, "--to", "hf", "--add-heads", "1"]) == 0
    status, lines = verify(capsys, tmp_path / "o", tmp_path / "o")
    assert status == 0
    assert "note: in MODEL itself head 4 is an untrained copy of head 1" in lines


def test_a_tolerance_of_ones_own(place, export, capsys):
    rewrite(export, HEADS, lambda s: s["extra_heads.1.attention_norm.weight"].mul_(1.01))
    assert verify(capsys, place / "m", export)[0] == 1
    assert verify(capsys, place / "m", export, "--tolerance", "0.5")[0] == 0


def test_no_code_of_the_export_is_run(place, export, tmp_path, capsys, monkeypatch):
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name in ("modeling_mtp.py", "decoding_mtp.py", "custom_generate/generate.py"):
        (export / name).write_text(trap, encoding="utf-8")
    fix_sums(export)
    assert verify(capsys, place / "m", export)[0] == 0
    assert not (tmp_path / "ran").exists()


def test_mistakes_are_one_line(place, tmp_path, capsys):
    model = str(place / "m")
    (tmp_path / "text").write_bytes(b"\xff")
    (tmp_path / "short").write_text("a")
    for options, message in (
        (["--tokens", "1"], "--tokens must be at least 2"),
        (["--tolerance", "nan"], "--tolerance must be"),
        (["--text", str(tmp_path / "none")], "cannot be read"),
        (["--text", str(tmp_path / "text")], "is not UTF-8"),
        (["--text", str(tmp_path / "short")], "give a longer one"),
    ):
        assert main(["verify", model, model, "--device", "cpu", *options]) == 2
        assert message in capsys.readouterr().err


def test_models_without_a_tokenizer(tmp_path, capsys):
    save_native(tiny_model(), tmp_path / "m")
    status, lines = verify(capsys, tmp_path / "m", tmp_path / "m")
    assert status == 0
    assert "note: no tokenizer on either side; random tokens were read" in lines
    (tmp_path / "text").write_text("words")
    assert verify(capsys, tmp_path / "m", tmp_path / "m", "--text", str(tmp_path / "text"))[0] == 2


def test_judging():
    one = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    check = HeadCheck(1, "x")
    check.add(one, one + 1e-4)
    assert not check.differs
    check.add(one, one.flip(1))
    assert (check.differs, check.same, check.places) == (True, 2, 4)
    for other in (float("nan"), float("inf")):
        check = HeadCheck(1, "x")
        check.add(one, torch.full_like(one, other))
        check.add(one, one)
        assert check.differs


def test_rounding_and_copies():
    model = tiny_model(tiny_args(dim=16))
    model.extra_heads[1].load_state_dict(model.extra_heads[0].state_dict())
    assert copies(model) == {3: 2}
    before = model.norm.weight.clone()
    round_alike(model, {"output.weight": torch.bfloat16})
    assert torch.equal(model.output.weight, model.output.weight.bfloat16().float())
    assert torch.equal(model.norm.weight, before)
