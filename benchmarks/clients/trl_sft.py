"""Fine-tune with trl's SFTTrainer and print a JSON line: seconds of the second epoch, losses.

    VENV/bin/python benchmarks/clients/trl_sft.py --model HF_DIR --rows FILE --adapt lora

Runs in a venv of its own with trl and peft; `benchmarks/adapt_step.py` starts it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Times of the steps' ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--adapt", choices=["full", "lora"], required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--out", default="/tmp/trl-out")
    parser.add_argument("--group", action="store_true", help="batches of like lengths")
    args = parser.parse_args()
    lines = Path(args.rows).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    rows = Dataset.from_list([{k: r[k] for k in ("prompt", "completion")} for r in records])
    lora = args.adapt == "lora"
    dtype = torch.bfloat16 if lora else torch.float32  # full: float32 weights, autocast
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    grouping = {"train_sampling_strategy": "group_by_length"} if args.group else {}
    config = SFTConfig(
        output_dir=args.out,
        per_device_train_batch_size=args.batch,
        num_train_epochs=2,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        logging_steps=1,
        max_length=512,
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **grouping,
    )
    clock = Clock()
    adapters = LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapters if lora else None,
        callbacks=[clock],
    )
    trainer.train()
    half = len(clock.ends) // 2
    figures = {
        "seconds": clock.ends[-1] - clock.ends[half - 1],
        "steps": half,
        "first_loss": clock.losses[0],
        "last_loss": clock.losses[-1],
        "trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
