"""`generate` of transformers against `custom_generate`, on exports with trained heads.

    python benchmarks/remote_generate.py KIND=DIR [KIND=DIR …] [--new 64] [--runs 3]
                                         [--out benchmarks/results/remote_generate.json]

KIND is micro, byte or smollm2; DIR a run or a checkpoint: `weighted-mtp train --recipe baseline
--preset micro`, what `byte_model.py` makes, what `heads_table.py` makes. Each is exported as
`convert --to hf` does and opened twice: without `trust_remote_code` (plain `generate`), and with it
(`generate(custom_generate=EXPORT)`). Nothing of this package runs while the clock does.

Greedy, float32 and bfloat16, `--new` tokens whatever they are, prompts of 16 tokens that the model
was not trained on (`decode_prompts.py`). Batch 4 is ragged: rows of 16, 13, 10 and 7 tokens, padded
on the left. The two take turns, one warm-up each; timed is the whole of `generate`, the prompt
included, and the figure is the median of `--runs`. One thread, and seconds of CPU time instead of
the clock's, so that other work on the machine counts for little.

    speed-up      tokens/s with custom_generate ÷ tokens/s of plain generate
    tokens/pass   tokens of a row ÷ forward passes, the prompt's among them
    equal         rows whose texts are the same. In bfloat16 a pass over several tokens rounds
                  otherwise than one over a single token, so near-ties can fall differently.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from decode_prompts import prompts
from train_step import cpu_name
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_huggingface

LENGTHS = {1: (16,), 4: (16, 13, 10, 7)}
COLUMNS = ("model", "format", "batch", "plain tok/s", "custom tok/s", "speed-up", "tokens/pass")


def main() -> None:
    """Measure every model, and write the figures as JSON and as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", metavar="KIND=DIR")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/remote_generate.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine = {"cpu": cpu_name(), "threads": torch.get_num_threads()}
    machine |= {"torch": torch.__version__, "transformers": transformers.__version__}
    machine |= {"python": platform.python_version()}
    rows = []
    for model in args.models:
        kind, _, name = model.partition("=")
        rows += measure_model(kind, Path(name), args.new, args.runs)
        args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    lines = [str(machine), "", f"| {' | '.join(COLUMNS)} | equal |", "|---" * 8 + "|"]
    lines += [
        f"| {' | '.join(str(row[key]) for key in COLUMNS)} | {row['equal']} of {row['batch']} |"
        for row in rows
    ]
    args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def measure_model(kind: str, source: Path, new: int, runs: int) -> list[dict[str, Any]]:
    """Figures of one model, a row for each number format and batch size."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        export = Path(name) / "export"
        save_huggingface(load_meta_mtp_model(find_model(source), "cpu", dtype="float32"), export)
        ids = prompts(kind, source, 4, 16)
        for dtype in (torch.float32, torch.bfloat16):
            options: dict[str, Any] = {"dtype": dtype}
            model = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True, **options)
            plain = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=False, **options)
            for each in (model, plain):
                each.eval().generation_config.eos_token_id = None
            for batch in LENGTHS:
                row = {"model": kind, "format": str(dtype).removeprefix("torch."), "batch": batch}
                row |= measure(model, plain, export, left_padded(ids, batch), new=new, runs=runs)
                print(json.dumps(row), flush=True)
                found.append(row)
    return found


def left_padded(ids: list[list[int]], batch: int) -> dict[str, Tensor]:
    """The last tokens of the prompts `[B, S]`, and the mask of what is padding."""
    lengths, S = LENGTHS[batch], len(ids[0])
    mask = torch.stack([torch.arange(S) >= S - length for length in lengths]).long()
    return {"input_ids": torch.tensor(ids[:batch]) * mask, "attention_mask": mask}


def measure(
    model: Any, plain: Any, export: Path, inputs: dict[str, Tensor], *, new: int, runs: int
) -> dict[str, Any]:
    """Both ways by turns; the first turn warms up."""
    options = {**inputs, "max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    chosen = {"custom_generate": str(export), "trust_remote_code": True}
    ways: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: plain.generate(**options),
        "custom": lambda: model.generate(**options, **chosen),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    texts: dict[str, Tensor] = {}
    for _ in range(runs + 1):
        for way, generate in ways.items():
            start = time.process_time()
            texts[way] = generate()
            seconds[way].append(time.process_time() - start)
    taken = {way: statistics.median(times[1:]) for way, times in seconds.items()}
    rows = len(inputs["input_ids"])
    return {
        "plain tok/s": round(rows * new / taken["plain"], 1),
        "custom tok/s": round(rows * new / taken["custom"], 1),
        "speed-up": round(taken["plain"] / taken["custom"], 2),
        "tokens/pass": round(new / model.forward_passes, 2),
        "equal": int((texts["plain"] == texts["custom"]).all(1).sum()),
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
