"""Heads and loss inside transformers' Trainer, on a model that weighted-mtp exported.

    weighted-mtp convert MODEL start --add-heads 3
    weighted-mtp convert start export --to hf
    python examples/hf_trainer.py --model export

Without `--model` it makes a tiny random one. `labels` are the tokens themselves, −100 where there
is no target; the loss is the mean over heads. Needs `pip install accelerate`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import weighted_mtp as wm


def tiny_export(folder: Path) -> Path:
    """A random model with three heads, as `weighted-mtp convert --to hf` writes it."""
    torch.manual_seed(0)
    shape = wm.ModelArgs(
        dim=32, n_layers=4, n_heads=2, vocab_size=64, n_future_tokens=3, max_seq_len=64
    )
    model = wm.Transformer(shape)
    model.init_weights()
    wm.save(model, folder, layout="hf", overwrite=True)
    return folder


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/trainer"))
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args(arguments)
    export = args.model or tiny_export(args.out / "export")
    # This runs modeling_mtp.py of the export, which weighted-mtp wrote: read it first.
    model = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 64, (16, 24), generator=generator)
    rows = [{"input_ids": row, "labels": row} for row in ids]
    settings = TrainingArguments(
        output_dir=str(args.out / "trainer"),
        max_steps=args.steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(model=model, args=settings, train_dataset=rows)
    trainer.train()
    model.save_pretrained(args.out / "trained")  # heads and code are in it
    heads = wm.load(args.out / "trained").transformer.args.n_future_tokens
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}; saved with {heads} heads")
    return losses


if __name__ == "__main__":
    main()
