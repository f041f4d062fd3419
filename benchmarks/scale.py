"""7B and 70B on 8 to 1,024 GPUs, on paper: the planner's memory, communication and compute.

    python benchmarks/scale.py [--out FILE.json]

Nothing here runs on a GPU. Models are counted on the meta device and everything else is arithmetic
(`pipelines/planning`), with one row of 8,192 tokens on each GPU, blocks gathered in bfloat16 and
gradients summed in float32. Prints and stores three tables: what torchtitan published against what
the same arithmetic gives for it, the modes for each number of GPUs, and where memory ends.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scale_models import LENGTH, NODE, Model, model
from scale_published import PUBLISHED, against_torchtitan, predicted_slowdown
from weighted_mtp.pipelines.planning.communication import Hardware
from weighted_mtp.pipelines.planning.memory import Memory, moments
from weighted_mtp.pipelines.planning.plan import CHECKPOINTING, SHARE
from weighted_mtp.pipelines.planning.shapes import MODELS

GIB = 2**30
ROOM = 79.0
"""GiB that a GPU sold with 80 GB has, about."""

SEVEN = replace(MODELS["7b"], max_seq_len=LENGTH)
SHAPES = {
    "7B, V = 32k": SEVEN,
    "7B, V = 128k": replace(SEVEN, vocab_size=128256),
    "70B, V = 128k": MODELS["70b"],
}
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)


def fits(memory: Memory) -> bool:
    return memory.total <= SHARE * ROOM * GIB


def modes(gpus: int) -> Iterator[tuple[str, str, int]]:
    """Name, mode, W."""
    if gpus == min(GPUS):  # fits no number of them
        yield "ddp", "ddp", NODE
    for shards in (8, 16, 32, 64, 128):
        if shards < gpus:
            yield f"hsdp {shards}", "hsdp", shards
    yield "fsdp", "fsdp", NODE


def at_scale(models: dict[str, Model], hardware: Hardware) -> list[dict[str, Any]]:
    """Every mode at every number of GPUs. Of hsdp, the node's size and the smallest that fits."""
    records = []
    for name, each in models.items():
        for gpus in GPUS:
            seen_fitting = False
            for label, mode, shards in modes(gpus):
                settings = {
                    how: each.setting(mode, gpus, shards, checkpointing=how)
                    for how in CHECKPOINTING
                }
                memories = {how: each.memory(setting) for how, setting in settings.items()}
                least = next((how for how in CHECKPOINTING if fits(memories[how])), None)
                if mode == "hsdp" and (seen_fitting or (least is None and shards > NODE)):
                    continue
                seen_fitting |= mode == "hsdp" and least is not None
                step = each.step(settings["full"], gpus, hardware)
                records.append(
                    {
                        "model": name,
                        "gpus": gpus,
                        "mode": label,
                        **{how: memory.total for how, memory in memories.items()},
                        "fits": least,
                        "all_gathered": step.received("all-gather"),
                        "reduce_scattered": step.received("reduce-scatter"),
                        "all_reduced": step.received("all-reduce"),
                        "into_node": step.into_node,
                        "flops": step.flops,
                        "compute_s": step.compute,
                        "communication_s": step.communication,
                        "exposed_s": step.exposed,
                        "hides_above": step.hides_above,
                        "tokens_per_second": step.tokens_per_second,
                        "batch_tokens": gpus * LENGTH,
                    }
                )
    return records


def slow_networks(models: dict[str, Model]) -> list[dict[str, Any]]:
    """Tokens on a GPU that hide communication, and those a second of 8,192, at 1,024 GPUs."""
    records = []
    for name, each in models.items():
        shards = NODE if name.startswith("7B") else 64
        for network in (50e9, 25e9, 12.5e9, 5e9):
            hardware = Hardware(network=network)
            record: dict[str, Any] = {"model": name, "network": network}
            for label, mode in ((f"hsdp {shards}", "hsdp"), ("fsdp", "fsdp")):
                step = each.step(each.setting(mode, 1024, shards), 1024, hardware)
                record[label] = [step.hides_above, step.tokens_per_second]
            records.append(record)
    return records


def longest_row(each: Model, mode: str, gpus: int, shards: int) -> int:
    """The longest row, in 1,024 tokens, that fits with full recomputation; 0 for none."""
    setting = each.setting(mode, gpus, shards, checkpointing="full")
    low, high = 0, 2048
    while high - low > 1:
        middle = (low + high) // 2
        found = each.memory(replace(setting, length=1024 * middle))
        low, high = (middle, high) if fits(found) else (low, middle)
    return low


def where_memory_ends(models: dict[str, Model]) -> list[dict[str, Any]]:
    """What one 8k row takes at each number of shards, and the longest row."""
    records = []
    for name, each in models.items():
        for gpus in GPUS:
            setting = each.setting("fsdp", gpus, checkpointing="full")
            peak = each.memory(setting)
            parts = {moment.moment: moment for moment in moments(each.counts, setting)}
            kept = parts["loss"].activations
            records.append(
                {
                    "model": name,
                    "shards": gpus,
                    **peak.parts,
                    "kept": kept,
                    "block_at_work": parts["backward, first block"].activations - kept,
                    "total": peak.total,
                    "moment": peak.moment,
                    "longest_row_k": longest_row(each, "fsdp", gpus, NODE),
                }
            )
    return records


def tables(found: dict[str, Any]) -> list[str]:
    """Markdown."""
    gib = lambda size: f"{size / GIB:.1f}"  # noqa: E731
    gb = lambda size: f"{size / 1e9:.1f}"  # noqa: E731
    lines = [
        "On paper: no GPU ran any of this.",
        "",
        f"hardware: {found['hardware']}",
        "",
        "## torchtitan's figures (Llama 3.1, n = 1, S = 8192, FSDP2 alone), GiB a GPU",
        "",
        "| | GPUs | rows | published (reserved) | its way, counted | ratio | ours, planned "
        "| tokens/s/GPU | MFU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found["torchtitan"]:
        reserved = r["reserved"]
        ratio = "" if reserved is None else f"{reserved * GIB / r['theirs_total']:.2f}"
        lines.append(
            f"| {r['what']} | {r['gpus']} | {r['rows']} | {reserved or 'runs on 80 GB'} "
            f"| {gib(r['theirs_total'])} | {ratio} | {gib(r['ours_total'])} "
            f"| {r['tokens_per_second']:,.0f} | {r['mfu']:.1%} |"
        )
    lines += ["", "Parts of the 8-GPU row, GiB:", ""]
    first = found["torchtitan"][0]
    for whose in ("theirs", "ours"):
        parts = ", ".join(f"{name} {gib(size)}" for name, size in first[whose].items() if size)
        lines.append(f"- {whose}: {parts}")
    published, predicted = found["slowdown"]["published"], found["slowdown"]["predicted"]
    lines += [
        "",
        f"From 8 to 128 GPUs tokens/s/GPU fell by {published:.1%} (compiled); the formulas say "
        f"{predicted:.1%}.",
        "",
        "## One row of 8,192 tokens on each GPU, n = 4",
        "",
        "GiB none/selective/full recomputation; GB that a GPU receives; seconds of a step.",
        "",
        "| model | GPUs | mode | GiB a GPU | fits 80 GB with | gathered | reduced | all-reduced "
        "| into a node | sent s | computed s | exposed s | hidden above (tokens/GPU) "
        "| tokens/s/GPU |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found["scale"]:
        sizes = "/".join(f"{r[how] / GIB:.0f}" for how in CHECKPOINTING)
        speed = f"{r['tokens_per_second']:,.0f}" if r["fits"] else "–"
        lines.append(
            f"| {r['model']} | {r['gpus']:,} | {r['mode']} | {sizes} | {r['fits'] or '–'} "
            f"| {gb(r['all_gathered'])} | {gb(r['reduce_scattered'])} | {gb(r['all_reduced'])} "
            f"| {gb(r['into_node'])} | {r['communication_s']:.2f} | {r['compute_s']:.2f} "
            f"| {r['exposed_s']:.2f} | {r['hides_above']:,.0f} | {speed} |"
        )
    lines += [
        "",
        "## A slower network, 1,024 GPUs: tokens/GPU that hide it, tokens/s/GPU",
        "",
        "| model | GB/s a GPU | tokens | tokens/s | tokens | tokens/s |",
        "|---|---|---|---|---|---|",
    ]
    for r in found["networks"]:
        cells = [f"{r['network'] / 1e9:g}"]
        for label in sorted(r.keys() - {"model", "network"}, reverse=True):
            above, speed = r[label]
            cells.append(f"{label}: {above:,.0f} | {speed:,.0f}")
        lines.append(f"| {r['model']} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Where memory ends: one row, full recomputation, fsdp, GiB a GPU",
        "",
        "| model | shards | weights + AdamW | inputs of blocks | a block at work | loss | "
        "gathered, being reduced | gradients | peak | longest row that fits |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found["memory"]:
        row = f"{r['longest_row_k']}k" if r["longest_row_k"] else "none"
        lines.append(
            f"| {r['model']} | {r['shards']:,} | {gib(r['weights'] + r['optimizer'])} "
            f"| {gib(r['kept'])} | {gib(r['block_at_work'])} | {gib(r['loss'])} "
            f"| {gib(r['buffers'])} | {gib(r['gradients'])} | {gib(r['total'])} | {row} |"
        )
    return lines


def main() -> None:
    """Count, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/scale.json")
    options = parser.parse_args()
    hardware = Hardware()
    models = {name: model(args) for name, args in SHAPES.items()}
    one_head = {
        MODELS[name].n_layers: model(replace(MODELS[name], n_future_tokens=1))
        for name in ("8b", "70b")
    }
    compiled = {r.gpus: r.tokens_per_second for r in PUBLISHED if r.what == "8B compiled"}
    found = {
        "hardware": asdict(hardware),
        "room_gib": ROOM,
        "share": SHARE,
        "torchtitan": against_torchtitan(one_head),
        "slowdown": {
            "published": 1 - compiled[128] / compiled[8],
            "predicted": predicted_slowdown(one_head[32], compiled[8]),
        },
        "scale": at_scale(models, hardware),
        "networks": slow_networks(models),
        "memory": where_memory_ends(models),
    }
    text = "\n".join(tables(found)) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
