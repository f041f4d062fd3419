"""Heads for a Hugging Face model: add three, train them alone, draft with them.

    python examples/hf_heads.py --model HuggingFaceTB/SmolLM2-135M --rows rows.jsonl --steps 500

Without `--model` it makes a tiny random Llama and rows for it. What the model writes stays the
same: its weights are frozen, and drafts are verified.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

import weighted_mtp as wm
from weighted_mtp.data.datasets import write_jsonl

TINY = [
    *("tokenizer.kind=bytes", "data.template=short", "data.max_length=48"),
    *("training.batch_size=4", "training.micro_batch_size=4", "training.learning_rate=0.01"),
    *("runtime.compute_dtype=float32", "runtime.device=cpu"),
]


def tiny_llama(folder: Path) -> tuple[Path, Path]:
    """A random Llama of transformers that reads bytes, and eight rows."""
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    rows = [
        {"instruction": f"add {i}", "output": f"return {i} + x", "task_id": f"sum/{i}"}
        for i in range(8)
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    return folder / "llama", folder / "rows.jsonl"


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder, or ORG/NAME of the hub")
    parser.add_argument("--rows", type=Path, help="JSONL; best are answers of the model itself")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/hf-heads"))
    args = parser.parse_args(arguments)
    settings = ["model.add_heads=3", f"training.steps={args.steps}"]
    model, rows = args.model, args.rows
    if model is None:
        model, rows = tiny_llama(args.out)
        settings += TINY
    settings += [f"model.path={model}", f"data.train={rows}", f"data.validation={rows}"]
    result = wm.train("heads", None, settings, output_dir=args.out / "run")
    print("drafts that head 1 agrees with:", result.validation["head_acceptance"])

    trained = wm.load(args.out / "run", device="cpu").transformer
    tokenizer = wm.load_tokenizer(args.out / "run")
    prompts = [tokenizer.encode("def add(a, b):\n")]
    stopping = wm.Stopping(24, tokenizer.stop_ids)
    plain, _ = wm.complete(trained, prompts, stopping)
    drafted, report = wm.complete(trained, prompts, stopping, speculation=wm.Speculation())
    assert drafted[0].tokens == plain[0].tokens
    print(f"{report.tokens_per_forward:.2f} tokens a forward pass; the text is the same")
    return report.tokens_per_forward


if __name__ == "__main__":
    main()
