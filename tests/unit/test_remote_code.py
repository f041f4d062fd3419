"""The modelling code in an export, opened by `AutoModelForCausalLM` with `trust_remote_code=True`:
its logits against this project's own model, decoding with heads against plain `generate`."""

import ast
import re
import sys
from itertools import product

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tests.helpers import SRC, random_tokens
from tests.unit.checkpoint_cases import tiny
from tests.unit.test_families import CASES, made, with_heads
from transformers import AutoModelForCausalLM, StoppingCriteria, Trainer, TrainingArguments

from weighted_mtp.losses.mtp_loss import count_targets, mtp_loss, shift_labels
from weighted_mtp.models.meta_mtp.checkpoints import (
    load_meta_mtp_model,
    save_huggingface,
    value_head_path,
)
from weighted_mtp.models.meta_mtp.layouts.side_files import read_config_fields

REMOTE = SRC / "models/meta_mtp/layouts/remote"
VERSION = tuple(int(number) for number in transformers.__version__.split(".")[:2])
HAS_CUSTOM_GENERATE = VERSION >= (4, 53)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Our model with three heads and the folder it was exported to, by case."""
    known = {}

    def get(name):
        if not hasattr(transformers, f"{CASES[name][0]}Config"):
            pytest.skip("a family that this transformers does not have")
        if VERSION < (4, 50) and name == "phi3, partial":
            pytest.skip("Phi-3 of this transformers rotates all features")
        if name not in known:
            folder = tmp_path_factory.mktemp("export")
            made(name).save_pretrained(folder / "plain")
            model = with_heads(folder / "plain")
            fields = read_config_fields(folder / "plain")
            save_huggingface(model, folder / "hf", config_fields=fields)
            known[name] = (model, folder / "hf")
        return known[name]

    return get


def opened(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


def plain(folder, **options):
    """The class of transformers, which its version 4 replaces once it has opened ours."""
    AutoModelForCausalLM._model_mapping._extra_content.clear()
    found = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
    assert type(found).__module__.startswith("transformers.models.")
    return found.eval()


every_case = pytest.mark.parametrize("name", CASES)
DECODED = (
    "llama, dynamic",
    "qwen2, yarn",
    "mistral, window",
    "granite",
    "smollm3",
    "phi3, partial",
)
STORED = ("llama, biases", "mistral, head_dim", "qwen3", "phi3", "phi3, partial")
"""What decoding and saving depend on: positions and windows; biases, norms, fused projections."""


def test_the_code_needs_nothing_but_torch_transformers_and_safetensors():
    for path in REMOTE.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [
            name
            for node in nodes
            for name in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
        ]
        foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        assert foreign <= {"torch", "transformers", "safetensors", "decoding_mtp"}
        assert len(path.read_text().splitlines()) <= 300


def test_the_package_does_not_import_the_code():
    for path in SRC.rglob("*.py"):
        assert not re.search(r"layouts\.remote\b", path.read_text(encoding="utf-8")), path


@every_case
@torch.no_grad()
def test_logits_of_all_heads_are_ours(name, exports):
    ours, folder = exports(name)
    tokens = random_tokens(ours.args, 2, 21)
    expected = ours(tokens, return_all_heads=True)
    theirs = opened(folder)
    torch.testing.assert_close(
        theirs(tokens, return_all_heads=True).logits, expected, rtol=0, atol=2e-5
    )
    torch.testing.assert_close(theirs(tokens).logits, expected[:, :, 0], rtol=0, atol=2e-5)
    torch.testing.assert_close(plain(folder)(tokens).logits, expected[:, :, 0], rtol=0, atol=2e-5)


def ragged(args, lengths=(9, 4, 7)):
    """Prompts padded on the left."""
    tokens = random_tokens(args, len(lengths), max(lengths), seed=5)
    mask = torch.stack([torch.arange(max(lengths)) >= max(lengths) - n for n in lengths]).long()
    return tokens.masked_fill(mask == 0, 0), mask


@pytest.mark.parametrize(
    ("name", "eos"),
    [*((name, 2) for name in DECODED), ("qwen3", None), ("phi3", [3, 4, 5])],
)
def test_greedy_texts_are_those_of_plain_generate(name, eos, exports):
    ours, folder = exports(name)
    tokens, mask = ragged(ours.args)
    options = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False}
    # Four tokens to choose from: some drafts are right and some wrong.
    options |= {"eos_token_id": eos, "pad_token_id": 0, "suppress_tokens": list(range(6, 61))}
    model, reference = opened(folder), plain(folder)
    expected = reference.generate(tokens, **options)
    if HAS_CUSTOM_GENERATE:
        chosen = {"custom_generate": str(folder), "trust_remote_code": True}
        assert model.generate(tokens, **chosen, **options).tolist() == expected.tolist()
    assert model.generate_with_heads(tokens, **options).tolist() == expected.tolist()
    for row in range(len(tokens)):
        options["attention_mask"] = mask[row : row + 1]
        alone = reference.generate(tokens[row : row + 1], **options)
        assert (
            model.generate_with_heads(tokens[row : row + 1], **options).tolist() == alone.tolist()
        )


def test_drafts_save_forward_passes(exports):
    ours, folder = exports("llama, wide heads")
    model = opened(folder)
    with torch.no_grad():  # every head copies its input's favourite: drafts are always right
        model.lm_head.weight.zero_()[7] = 0.0
    tokens, mask = ragged(ours.args)
    model.generate_with_heads(tokens, attention_mask=mask, max_new_tokens=15, do_sample=False)
    assert model.forward_passes == 6  # the prompt, then three tokens a pass


def test_processors_see_the_tokens_before(exports):
    ours, folder = exports("qwen2")
    tokens, mask = ragged(ours.args)
    options = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    options |= {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_new_tokens": 3}
    options["prefix_allowed_tokens_fn"] = lambda row, ids: [
        token for token in range(61) if token % 4 != (row + len(ids)) % 4
    ]
    expected = plain(folder).generate(tokens, **options)
    assert opened(folder).generate_with_heads(tokens, **options).tolist() == expected.tolist()


class Recorder(transformers.generation.streamers.BaseStreamer):
    def __init__(self):
        self.columns, self.ended = [], False

    def put(self, value):
        self.columns.append(value.tolist())

    def end(self):
        self.ended = True


class SumAbove(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.sum(-1) > 500


@pytest.mark.parametrize("eos", [None, 2])
def test_streamers_and_stopping_criteria(eos, exports):
    ours, folder = exports("llama, biases")
    tokens, mask = ragged(ours.args)
    for rows in (slice(0, 1), slice(0, 3)):
        streams = [Recorder(), Recorder()]
        texts = [
            generate(
                tokens[rows],
                attention_mask=mask[rows],
                max_new_tokens=20,
                do_sample=False,
                eos_token_id=eos,
                pad_token_id=0,
                stopping_criteria=[SumAbove()],
                streamer=stream,
                suppress_tokens=list(range(40)),
            ).tolist()
            for generate, stream in zip(
                (plain(folder).generate, opened(folder).generate_with_heads), streams, strict=True
            )
        ]
        assert texts[0] == texts[1]
        assert len(texts[0][0]) < tokens.shape[1] + 20  # it did stop
        assert streams[0].columns == streams[1].columns
        assert streams[1].ended


def test_what_drafts_cannot_serve_is_decoded_plainly(exports):
    ours, folder = exports("llama, biases")
    tokens, mask = ragged(ours.args)
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    model, reference = opened(folder), plain(folder)
    beams = {**options, "num_beams": 2}
    assert torch.equal(
        model.generate_with_heads(tokens, **beams), reference.generate(tokens, **beams)
    )
    scores = {**options, "output_scores": True, "return_dict_in_generate": True}
    found = model.generate_with_heads(tokens, **scores)
    assert len(found.scores) == 5
    assert torch.equal(found.sequences, reference.generate(tokens, **options))
    places = (mask.cumsum(1) - 1).clamp(min=0)
    for shift in (0, 2):  # the positions that `generate` takes by itself, and others
        placed = {**options, "position_ids": places + shift}
        assert torch.equal(
            model.generate_with_heads(tokens, **placed), reference.generate(tokens, **placed)
        )
    whole = model.generate_with_heads(tokens, **{**options, "return_dict_in_generate": True})
    assert torch.equal(whole.sequences, found.sequences)


@pytest.mark.skipif(not HAS_CUSTOM_GENERATE, reason="transformers before custom_generate")
def test_custom_generate_of_a_model_without_its_heads_is_plain(exports):
    ours, folder = exports("llama, biases")
    tokens, mask = ragged(ours.args)
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    model = plain(folder)
    found = model.generate(tokens, custom_generate=str(folder), trust_remote_code=True, **options)
    assert found.tolist() == model.generate(tokens, **options).tolist()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 4}])
def test_sampled_texts_have_the_distribution_of_the_model(settings, tmp_path):
    """Texts of three tokens over a vocabulary of five: their counts against the product of the
    model's own probabilities, by a chi-squared test."""
    save_huggingface(tiny(vocab_size=5), tmp_path / "hf")
    model = opened(tmp_path / "hf")
    prompt, draws = torch.tensor([[1, 3]]), 6000

    def probabilities(logits):
        logits = logits / settings.get("temperature", 1.0)
        kept = logits.topk(settings.get("top_k", 5)).values[:, -1:]
        return logits.masked_fill(logits < kept, -torch.inf).softmax(-1)

    expected = torch.zeros(5, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        texts = torch.tensor([[1, 3, *text] for text in product(range(5), repeat=2)])
        p = torch.stack(
            [probabilities(x) for x in plain(tmp_path / "hf")(texts).logits[:, 1:].unbind(1)], 1
        ).double()
        for text, (first, second, third) in zip(texts.tolist(), p, strict=True):
            a, b = text[2:]
            expected[a, b] = first[a] * second[b] * third
    torch.manual_seed(0)
    options = {"top_k": 0, **settings, "do_sample": True, "max_new_tokens": 3, "pad_token_id": 0}
    found = model.generate_with_heads(
        prompt.expand(draws, -1), attention_mask=torch.ones(draws, 2, dtype=torch.long), **options
    )
    assert model.forward_passes < 4
    counts = torch.zeros(5, 5, 5, dtype=torch.float64)
    for row in found[:, 2:].tolist():
        counts[tuple(row)] += 1
    cells = expected * draws >= 5
    assert counts[expected == 0].sum() == 0
    chi = ((counts - expected * draws) ** 2 / (expected * draws))[cells].sum()
    df = int(cells.sum()) - 1
    assert chi < df + 4 * (2 * df) ** 0.5


def reference_loss(logits, labels, total=None):
    """By plain loops: the mean over heads of the cross-entropy of head k at offset k."""
    B, S, n, _ = logits.shape
    heads = []
    for k in range(1, n + 1):
        losses = [
            -logits[b, t, k - 1].log_softmax(-1)[labels[b, t + k]]
            for b in range(B)
            for t in range(S - k)
            if labels[b, t + k] != -100
        ]
        heads.append(sum(losses) / (total or len(losses)))
    return sum(heads) / n


def test_the_loss_is_ours(exports):
    ours, folder = exports("qwen3")
    model = opened(folder)
    tokens = random_tokens(ours.args, 2, 11)
    labels = tokens.clone()
    labels[0, :4] = labels[1, 8:] = -100
    out = model(tokens, labels=labels, return_all_heads=True)
    expected = reference_loss(out.logits.double(), labels)
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    states, _ = model.head_states(input_ids=tokens)
    targets = shift_labels(labels, len(states))
    loss = mtp_loss(states, model.lm_head.weight, targets, count_targets(targets)).loss
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    half = model(tokens, labels=labels, num_items_in_batch=40)
    assert half.loss.item() == pytest.approx(
        reference_loss(out.logits.double(), labels, 40).item(), rel=1e-6
    )
    assert half.logits.shape == (2, 11, 61)
    nothing = model(tokens, labels=torch.full_like(labels, -100)).loss
    nothing.backward()
    assert nothing.item() == 0


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama, biases", "smollm3", "phi3"])
def test_gradient_checkpointing_changes_no_gradient(name, reentrant, exports):
    ours, folder = exports(name)
    tokens = random_tokens(ours.args, 2, 9)

    def gradients(checkpointed):
        model = opened(folder).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(tokens, labels=tokens).loss.backward()
        return {key: weight.grad for key, weight in model.named_parameters()}

    expected = gradients(False)
    assert all(gradient.abs().sum() > 0 for gradient in expected.values() if gradient is not None)
    for key, gradient in gradients(True).items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-7, msg=key)


@pytest.mark.parametrize("name", STORED)
def test_save_pretrained_keeps_the_heads(name, exports, tmp_path):
    ours, folder = exports(name)
    model = opened(folder)
    with torch.no_grad():
        for weight in model.mtp_heads.parameters():
            weight *= 1.25
    model.save_pretrained(tmp_path / "saved")
    again = opened(tmp_path / "saved")
    for key, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[key]), key
    back = load_meta_mtp_model(tmp_path / "saved", "cpu", verify=True)  # by our own reader
    tokens = random_tokens(ours.args, 2, 21)
    with torch.no_grad():
        expected = again(tokens, return_all_heads=True).logits
        torch.testing.assert_close(back(tokens, return_all_heads=True), expected, rtol=0, atol=5e-5)
        head = plain(tmp_path / "saved")(tokens).logits
    torch.testing.assert_close(head, expected[:, :, 0], rtol=0, atol=2e-5)
    assert (tmp_path / "saved/custom_generate/generate.py").read_text() == (
        folder / "custom_generate/generate.py"
    ).read_text()


def test_save_pretrained_keeps_the_value_head(tmp_path):
    head = tmp_path / "v.safetensors"
    save_file({"value.weight": torch.ones(1, 32)}, head, metadata={"head_type": "linear"})
    save_huggingface(tiny(), tmp_path / "hf", value_head_file=head)
    opened(tmp_path / "hf").save_pretrained(tmp_path / "saved")
    opened(tmp_path / "saved").save_pretrained(tmp_path / "again")
    path = tmp_path / "again/mtp/value_head.safetensors"
    assert value_head_path(tmp_path / "again") == path
    assert path.read_bytes() == head.read_bytes()


def test_a_model_without_extra_heads_is_saved_as_a_plain_one(tmp_path):
    """transformers 4 opens every later model of the family as the class that it was given once."""
    save_huggingface(tiny(), tmp_path / "hf")
    config = transformers.LlamaConfig.from_pretrained(tmp_path / "hf", mtp_n_future_tokens=1)
    type(opened(tmp_path / "hf"))(config).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/mtp").exists()
    assert load_meta_mtp_model(tmp_path / "saved", "cpu").args.n_future_tokens == 1


def test_device_map(exports):
    pytest.importorskip("accelerate")
    _, folder = exports("llama, biases")
    placed, model = opened(folder, device_map="cpu"), opened(folder)
    for key, weight in model.state_dict().items():
        assert torch.equal(placed.state_dict()[key], weight), key


def test_trainer_trains_and_saves_the_heads(exports, tmp_path):
    pytest.importorskip("accelerate")
    ours, folder = exports("llama, biases")
    model = opened(folder)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    rows = [{"input_ids": ids, "labels": ids} for ids in random_tokens(ours.args, 8, 12)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=4,
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    saved = opened(tmp_path / "run/checkpoint-4").state_dict()
    for key, weight in model.state_dict().items():
        assert torch.equal(saved[key], weight), key
        assert not torch.equal(before[key], weight), key


def test_peft_adapts_trunk_and_heads(exports, tmp_path):
    peft = pytest.importorskip("peft")
    ours, folder = exports("qwen2")
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(opened(folder), config)
    tokens = random_tokens(ours.args, 2, 9)
    optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], 0.5)
    losses = []
    for _ in range(4):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = [key for key, weight in model.named_parameters() if weight.grad is not None]
    assert all("lora_" in key for key in trained)
    assert any("mtp_heads.1." in key for key in trained)
    with torch.no_grad():
        expected = model(input_ids=tokens, return_all_heads=True).logits
        merged = model.merge_and_unload()
        found = merged(tokens, return_all_heads=True).logits
        merged.save_pretrained(tmp_path / "merged")
        saved = opened(tmp_path / "merged")(tokens, return_all_heads=True).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(saved, found, rtol=0, atol=1e-6)


def test_bfloat16_and_float64(exports):
    ours, folder = exports("granite")
    tokens = random_tokens(ours.args, 2, 9)
    for dtype in (torch.bfloat16, torch.float64):
        model = opened(folder, **{"torch_dtype" if VERSION < (5, 0) else "dtype": dtype})
        assert {weight.dtype for weight in model.parameters()} == {dtype}
        found = model.generate_with_heads(tokens, max_new_tokens=4, do_sample=False)
        assert found.shape == (2, 13)
