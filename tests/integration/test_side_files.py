"""What a folder says of ids, generation and chat survives, and transformers stops at EOS."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.integration import helpers_training
from tests.integration.helpers_training import last_checkpoint
from tests.unit.checkpoint_cases import hf_model, tiny, write_meta
from tests.unit.test_tokenizers import write_huggingface
from transformers import AutoModelForCausalLM, AutoTokenizer

from weighted_mtp.cli.main import main
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer, load_tokenizer
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_native
from weighted_mtp.models.meta_mtp.layouts.remote_code import FILES, GENERATE_FILE
from weighted_mtp.models.meta_mtp.layouts.side_files import SideFiles
from weighted_mtp.pipelines.checkpointing.sharded import ShardedSaver

rows_file = helpers_training.rows_file
make_trainer = helpers_training.make_trainer

PROMPT, MOST = [5, 9, 12, 3], 24
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}\n"


def first_new(tokens: list[int]) -> tuple[int, int]:
    """The first token, from the fifth on, that was not there before, and its place."""
    return next((i, t) for i, t in enumerate(tokens) if i >= 4 and t not in tokens[:i])


@torch.no_grad()
def continuation(folder: Path, eos: list[int] | None = None) -> list[int]:
    """What transformers writes after PROMPT; it stops where the folder says, unless told."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    more = {} if eos is None else {"eos_token_id": eos}
    ids = torch.tensor([PROMPT])
    found = model.generate(ids, max_new_tokens=MOST, do_sample=False, pad_token_id=0, **more)
    return found[0, len(PROMPT) :].tolist()


def convert(source: Path, folder: Path, to: str) -> Path:
    assert main(["convert", str(source), str(folder), "--to", to]) == 0
    return folder


def train(model: Path, run_dir: Path, rows: Path, *more: str) -> Path:
    """One step that moves no weight by more than 1e-9; the run's directory."""
    settings = {
        "model.path": model,
        "data.source": "jsonl",
        "data.train": rows,
        "data.template": "short",
        "data.max_length": 64,
        "training.steps": 1,
        "training.batch_size": 2,
        "training.micro_batch_size": 2,
        "training.learning_rate": 1e-10,
        "training.final_learning_rate": 1e-10,
        "runtime.device": "cpu",
        "runtime.compute_dtype": "float32",
    }
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    options += [word for setting in more for word in ("--set", setting)]
    argv = ["train", "--recipe", "baseline", "--output-dir", str(run_dir), *options]
    assert main(argv) == 0
    return run_dir


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[Path, int]:
    """A Hugging Face folder that says all it can, and how many tokens it writes to its second EOS.

    The model's config names that id beside the tokenizer's EOS; generation_config.json as well.
    """
    folder = tmp_path_factory.mktemp("source") / "model"
    model = hf_model(vocab_size=300, max_position_embeddings=128, initializer_range=0.3)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    place, second = first_new(continuation(folder, eos=[299]))
    write_huggingface(folder, bos="<s>")
    config = json.loads((folder / "config.json").read_text())
    ids = {"bos_token_id": 0, "eos_token_id": [1, second], "pad_token_id": 7}
    (folder / "config.json").write_text(json.dumps({**config, **ids, "top_k": 40}))
    generation = {"eos_token_id": [1, second], "temperature": 0.6, "do_sample": True}
    texts: dict[str, str] = {
        "generation_config.json": json.dumps(generation, indent=4),
        "special_tokens_map.json": json.dumps({"eos_token": "</s>", "bos_token": "<s>"}),
        "added_tokens.json": "{ }",
        "chat_template.jinja": CHAT,
        "chat_template.json": json.dumps({"chat_template": CHAT}),
        "additional_chat_templates/tools.jinja": CHAT * 2,
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder, place + 1


def said(folder: Path) -> dict[str, bytes]:
    """Every file of a Hugging Face folder but weights, config, card, ours and modelling code."""
    left_out = ("config.json", "model.safetensors", "model.safetensors.index.json")
    left_out += (*FILES, GENERATE_FILE, "README.md")
    return {
        name: path.read_bytes()
        for path in folder.rglob("*.*")
        if (name := path.relative_to(folder).as_posix()) not in left_out
        and not name.startswith("mtp/")
    }


def said_by_config(folder: Path) -> Mapping[str, object]:
    config = json.loads((folder / "config.json").read_text())
    return {
        key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id", "top_k")
    }


def test_all_survives_there_and_back_twice(source, tmp_path):
    folder, length = source
    place = folder
    for number, to in enumerate(["native", "native", "hf", "native", "hf", "hf"]):
        place = convert(place, tmp_path / str(number), to)
        if to == "hf":
            assert said(place) == said(folder)
            assert said_by_config(place) == said_by_config(folder)
    assert continuation(place) == continuation(folder)
    assert len(continuation(place)) == length < MOST


@pytest.mark.parametrize("start", ["hf", "native"])
def test_all_survives_training(source, rows_file, tmp_path, start):
    folder, length = source
    model = folder if start == "hf" else convert(folder, tmp_path / "native", "native")
    run_dir = train(model, tmp_path / "run", rows_file)
    assert load_tokenizer(last_checkpoint(run_dir) / "model").stop_ids == {
        *said_by_config(folder)["eos_token_id"]
    }
    export = convert(run_dir, tmp_path / "export", "hf")
    assert said(export) == said(folder)
    assert said_by_config(export) == said_by_config(folder)
    assert len(continuation(export)) == length
    again = train(export, tmp_path / "again", rows_file)  # and a second time, from the export
    assert said(convert(again, tmp_path / "twice", "hf")) == said(folder)


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
def test_all_survives_a_checkpoint_in_parts(source, make_trainer, tmp_path):
    folder, _ = source
    trainer = make_trainer()
    adapter, tokenizer = trainer.module.adapter, load_tokenizer(folder)
    adapter.side_files = SideFiles.read(folder)
    parts = (adapter, trainer.weights, trainer.optimizer, tokenizer)
    (tmp_path / "run").mkdir()
    saver = ShardedSaver(tmp_path / "run", *parts, trainer.copies)
    saver.save(1, (), {})
    saver.settle()
    parts_dir = tmp_path / "run/checkpoints/step-00000001"
    for to in ("hf", "native"):
        convert(parts_dir, tmp_path / to, to)
    back = convert(tmp_path / "native", tmp_path / "back", "hf")
    for export in (tmp_path / "hf", back):
        assert said(export) == said(folder)
        assert said_by_config(export) == said_by_config(folder)


def test_training_adds_the_end_that_it_teaches(source, rows_file, tmp_path):
    """Configs that name another EOS than the tokenizer, whose EOS ends every response."""
    folder, _ = source
    model = convert(folder, tmp_path / "model", "hf")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": 9}))
    (model / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
    (model / "mtp" / "sums.json").unlink()  # changed on purpose
    plain = convert(model, tmp_path / "plain", "hf")
    assert json.loads((plain / "config.json").read_text())["eos_token_id"] == 9
    assert said(plain) == said(model)  # a conversion changes nothing
    export = convert(train(model, tmp_path / "run", rows_file), tmp_path / "export", "hf")
    assert json.loads((export / "config.json").read_text())["eos_token_id"] == [9, 1]
    generation = json.loads((export / "generation_config.json").read_text())
    assert generation == {"temperature": 0.5, "do_sample": True, "eos_token_id": 1}


def test_another_tokenizer_brings_its_own_ids(source, rows_file, tmp_path):
    folder, _ = source
    run_dir = train(folder, tmp_path / "run", rows_file, "tokenizer.kind=bytes")
    export = convert(run_dir, tmp_path / "export", "hf")
    config = json.loads((export / "config.json").read_text())
    named = [config[f"{role}_token_id"] for role in ("bos", "eos", "pad")]
    assert named == [257, 258, 256]
    generation = json.loads((export / "generation_config.json").read_text())
    assert generation == {"temperature": 0.6, "do_sample": True, "eos_token_id": 258}
    assert load_tokenizer(export).fingerprint == ByteTokenizer.fingerprint
    assert not (export / "chat_template.jinja").exists()


def swap_in_eos(state: dict[str, torch.Tensor], token: int, eos: int) -> None:
    """Make a model write `eos` where it would write `token`."""
    output = state["output.weight"]
    output[[token, eos]] = output[[eos, token]].clone()


@pytest.mark.parametrize("trained", [False, True])
def test_a_meta_folder_gets_its_ids_from_the_tokenizer(
    tmp_path, rows_file, sentencepiece_model, trained
):
    """`params.json` and `tokenizer.model` name nothing: EOS is the SentencePiece model's, 2."""
    model = tiny(vocab_size=32000, dim=16, n_layers=3, n_future_tokens=2, multiple_of=8)
    folder = write_meta(tmp_path / "meta", model)
    place, token = first_new(continuation(convert(folder, tmp_path / "first", "hf"), eos=[31999]))
    file = folder / "consolidated.pth"
    state = torch.load(file, weights_only=True)
    swap_in_eos(state, token, 2)
    torch.save(state, file)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
    start = train(folder, tmp_path / "run", rows_file) if trained else folder
    export = convert(start, tmp_path / "export", "hf")
    assert said_by_config(export) | {"top_k": None} == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "top_k": None,
    }
    written = continuation(export)
    assert len(written) == place + 1
    assert written[-1] == 2
    tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=False)
    assert tokenizer.eos_token_id == 2
    assert load_tokenizer(export).fingerprint == load_tokenizer(folder).fingerprint


@pytest.mark.parametrize("trained", [False, True])
def test_a_native_folder_gets_its_ids_from_the_tokenizer(tmp_path, rows_file, trained):
    model = tiny(vocab_size=259)
    ByteTokenizer().save(tmp_path / "tok")
    files = [tmp_path / "tok/bytes.json"]
    save_native(model, tmp_path / "first", tokenizer_files=files)
    place, token = first_new(
        continuation(convert(tmp_path / "first", tmp_path / "first-hf", "hf"), eos=[250])
    )
    with torch.no_grad():
        swap_in_eos(model.state_dict(), token, 258)
    save_native(model, tmp_path / "native", tokenizer_files=files)
    start = tmp_path / "native"
    start = train(start, tmp_path / "run", rows_file) if trained else start
    export = convert(start, tmp_path / "export", "hf")
    written = continuation(export)
    assert len(written) == place + 1
    assert written[-1] == 258


def test_plain_readers_see_a_plain_llama(tmp_path, capsys):
    """Heads and value head are in `mtp/`; nothing at the top or in the index names them."""
    model = tiny()
    head = {"value.weight": torch.ones(1, 32), "value.bias": torch.zeros(1)}
    save_file(
        head, tmp_path / "v.safetensors", metadata={"hidden_size": "32", "head_type": "linear"}
    )
    save_native(model, tmp_path / "n", value_head_file=tmp_path / "v.safetensors")
    export = convert(tmp_path / "n", tmp_path / "h", "hf")
    assert [path.name for path in export.glob("*.safetensors")] == ["model.safetensors"]
    assert {path.name for path in (export / "mtp").iterdir()} == {
        "mtp_heads.safetensors",
        "sums.json",
        "value_head.safetensors",
    }
    index = json.loads((export / "model.safetensors.index.json").read_text())
    weights = load_file(export / "model.safetensors")
    assert index["weight_map"] == dict.fromkeys(weights, "model.safetensors")
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in weights.values())
    for name in ("mtp_heads.safetensors", "value_head.safetensors"):  # as old exports have them
        (export / "mtp" / name).rename(export / name)
    (export / "mtp" / "sums.json").unlink()
    (export / "mtp").rmdir()
    old = load_meta_mtp_model(export, device="cpu").state_dict()
    assert all(torch.equal(weight, old[name]) for name, weight in model.state_dict().items())
    capsys.readouterr()
    assert main(["inspect", str(export)]) == 0
    assert "value head   yes" in capsys.readouterr().out
