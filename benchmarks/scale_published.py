"""What torchtitan published of Llama 3.1, against the planner's arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from scale_models import LENGTH, Model
from weighted_mtp.pipelines.planning.communication import Hardware


@dataclass(frozen=True)
class Published:
    """A row of torchtitan's tables: GiB reserved and tokens a second of one GPU."""

    source: str
    what: str
    layers: int
    dim: int
    gpus: int
    rows: int
    recompute: str
    peak_tflops: float
    tokens_per_second: float
    reserved: float | None


DECEMBER = "benchmarks/llama3_h100_202412_torchtitan.md"
A100 = "docs/performance.md"
PUBLISHED = (
    Published(DECEMBER, "8B eager", 32, 4096, 8, 2, "selective", 989, 5762, 82.4),
    Published(DECEMBER, "8B compiled", 32, 4096, 8, 2, "selective", 989, 6667, 77.0),
    Published(DECEMBER, "8B eager", 32, 4096, 128, 2, "selective", 989, 5605, 67.0),
    Published(DECEMBER, "8B compiled", 32, 4096, 128, 2, "selective", 989, 6514, 62.0),
    Published(A100, "8B, A100", 32, 4096, 64, 1, "selective", 312, 2973, None),
    Published(A100, "70B, A100", 80, 8192, 64, 1, "full", 312, 331, None),
)


def of_torchtitan(each: Model, row: Published) -> dict[str, int]:
    """Bytes alive in torchtitan's loss, by the formulas of its own way of running: bfloat16
    residual stream and root, whole logits in float32 three times (log-softmax, its gradient, and
    the gradient behind it), and with "op" selective checkpointing the block's input, attention's
    output and every other product (wq, wv, w1, w2 of a block)."""
    args, N = each.args, row.rows * LENGTH
    heads, keys = args.n_heads * args.head_dim, args.kv_heads * args.head_dim
    block = 2 * N * args.dim
    if row.recompute == "selective":
        block += N * (2 * (2 * heads + keys + args.ffn_dim + args.dim) + 4 * args.n_heads)
    return {
        "weights and AdamW": 12 * each.counts.parameters // row.gpus,
        "root, bfloat16": 2 * each.counts.root,
        "kept of the blocks": args.n_layers * block,
        "logits": 3 * 4 * N * args.vocab_size,
    }


def against_torchtitan(one_head: dict[int, Model]) -> list[dict[str, Any]]:
    """What was published, what its own way of running should take, and what ours would."""
    records = []
    for row in PUBLISHED:
        each = one_head[row.layers]
        ours = each.setting("fsdp", row.gpus, rows=row.rows, checkpointing=row.recompute)
        theirs = of_torchtitan(each, row)
        step = each.step(ours, row.gpus, Hardware(flops=1e12 * row.peak_tflops, utilisation=1))
        mfu = row.tokens_per_second * (step.forward + step.backward) / (1e12 * row.peak_tflops)
        records.append(
            {
                **asdict(row),
                "theirs": theirs,
                "theirs_total": sum(theirs.values()),
                "ours": each.memory(ours).parts,
                "ours_total": each.memory(ours).total,
                "mfu": mfu,
            }
        )
    return records


def predicted_slowdown(each: Model, eight: float) -> float:
    """From 8 to 128 GPUs, at the rate that 8 GPUs reached (2 rows each)."""
    ideal = Hardware(utilisation=1)
    rates = {}
    work = None
    for gpus in (8, 128):
        step = each.step(each.setting("fsdp", gpus, rows=2), gpus, ideal)
        work = work or step.compute * eight / step.tokens  # MFU, what is exposed included
        rates[gpus] = replace(step, hardware=Hardware(utilisation=work)).tokens_per_second
    return 1 - rates[128] / rates[8]
