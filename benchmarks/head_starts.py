"""Where new heads begin: the loss of heads 2 … 4 after 0, 50 and 200 steps from several starts.

    python benchmarks/head_starts.py MODEL [--out benchmarks/results/head_starts.jsonl] [START ...]

MODEL is a Llama with the next-token head only and its tokenizer. A START is

    copy            of the last block
    narrow:S        the same, what its residual branches add times S
    block:I         a copy of block I of the trunk
    ridge:L         a copy whose two last projections are fitted by ridge regression from 0, λ = L
    prior:L         a copy whose last projection is fitted around itself, λ = L
                    (`pipelines.training.head_start`, `model.head_start: fit`)

Method. States of the frozen trunk are computed once, in bfloat16, for windows of 512 tokens of
Python's standard library; a hash keeps 5 % of its files for the test. Target of head k at t is head
1's likeliest token at t + k − 1. A step is 1,024 positions, AdamW, 1e-3 after 20 steps and falling
from step 100, cross-entropy over the 6,144 most frequent targets. The loss reported is over the
whole vocabulary, on 8 windows nobody trained on.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.tokens.corpus import STDLIB, Corpus, held_out
from weighted_mtp.data.tokens.tokenizers import load_tokenizer
from weighted_mtp.models.meta_mtp.add_heads import add_heads
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model
from weighted_mtp.models.meta_mtp.transformer import Transformer

STARTS = ("copy", "narrow:0.1", "block:28", "block:20", "ridge:0.01", "prior:1", "prior:0.1")
HEADS, WINDOW, VOCABULARY, STEPS, ROWS = 4, 512, 6144, 200, 2
MARKS = (50, 200)
Stored = tuple[Tensor, Tensor, Tensor]  # trunk and head 1's stream [B, S, D], its choice [B, S]


def windows(folder: Path, count: int, validation: bool, chance: random.Random) -> Tensor:
    """`[count, WINDOW]` tokens, each window from the beginning of a line."""
    tokenizer = load_tokenizer(folder)
    texts = [x for x in Corpus(STDLIB).documents() if held_out(x, 0.05) == validation]
    found: list[list[int]] = []
    while len(found) < count:
        text = chance.choice(texts)
        place = text.rfind("\n", 0, chance.randrange(len(text))) + 1
        ids = tokenizer.encode(text[place : place + 6 * WINDOW])[:WINDOW]
        if len(ids) == WINDOW:
            found.append(ids)
    return torch.tensor(found)


@torch.no_grad()
def read(model: Transformer, tokens: Tensor) -> Stored:
    """What the heads train on."""
    last, parts = model.layers[-1], list[Stored]()
    for rows in tokens.split(4):
        trunk = model.trunk_state(rows)
        stream = last(trunk, *model.context(rows, 0, None))
        choice = torch.cat([model.output(x).argmax(-1)[None] for x in model.final(stream)])
        parts.append((trunk, stream, choice))
    trunks, streams, choices = (torch.cat(x) for x in zip(*parts, strict=True))
    return trunks, streams, choices


class Bench:
    """The frozen model and its states."""

    def __init__(self, folder: Path) -> None:
        chance = random.Random(0)
        self.base = load_meta_mtp_model(folder, device="cpu", dtype="float32").requires_grad_(False)
        halved = load_meta_mtp_model(folder, device="cpu", dtype="bfloat16")
        self.train = read(halved, windows(folder, 96, False, chance))
        self.test = read(halved, windows(folder, 8, True, chance))
        V = self.base.args.vocab_size
        frequent = torch.bincount(self.train[2].flatten(), minlength=V).topk(VOCABULARY).indices
        self.frequent = frequent.sort().values
        self.place = torch.full((V,), IGNORE_INDEX)
        self.place[self.frequent] = torch.arange(VOCABULARY)
        self.freqs_cis = self.base.freqs_cis[:WINDOW]

    def states(self, model: Transformer, trunk: Tensor) -> Iterator[tuple[int, Tensor]]:
        """k and the normalised state `[B, S, D]` of each new head."""
        for k, head in enumerate(model.extra_heads, 2):
            with torch.autocast("cpu", torch.bfloat16):
                yield k, model.norm(head(trunk, self.freqs_cis))

    @torch.no_grad()
    def evaluate(self, model: Transformer) -> dict[str, list[float]]:
        """Loss in nats and share of right choices of each head, on the test windows."""
        trunk, _, choice = self.test
        weight, losses, hits = model.output.weight.bfloat16(), [], []
        for k, state in self.states(model, trunk):
            state, y = state[:, : 1 - k].flatten(0, 1).bfloat16(), choice[:, k - 1 :].flatten()
            logits = torch.cat([F.linear(x, weight).float() for x in state.split(1024)])
            losses.append(round(F.cross_entropy(logits, y).item(), 3))
            hits.append(round((logits.argmax(-1) == y).float().mean().item(), 3))
        return {"loss": losses, "right": hits}

    def start(self, kind: str) -> Transformer:
        """The model with new heads that begin like this."""
        model = add_heads(self.base, HEADS)
        name, _, value = kind.partition(":")
        for k, head in enumerate(model.extra_heads, 2):
            if name == "narrow":
                for module in ("attention.wo", "feed_forward.w2"):
                    head.get_parameter(f"{module}.weight").data.mul_(float(value))
            elif name == "block":
                head.load_state_dict(self.base.layers[int(value)].state_dict())
            elif name == "ridge":
                self.fit(head, "attention.wo", k, float(value), 0.0)
                self.fit(head, "feed_forward.w2", k, float(value), 0.0)
            elif name == "prior":
                self.fit(head, "feed_forward.w2", k, float(value), 1.0)
            head.requires_grad_(True)
        return model

    @torch.no_grad()
    def fit(self, head: nn.Module, module: str, k: int, ridge: float, keep: float) -> None:
        """Set a projection so that the head's output meets the teacher's: ridge regression around
        `keep` times what it is."""
        trunk, target, _ = self.train
        found: list[Tensor] = []
        projection = head.get_submodule(module)
        hook = projection.register_forward_pre_hook(lambda _, args: found.append(args[0].float()))
        with torch.autocast("cpu", torch.bfloat16):
            out = head(trunk, self.freqs_cis).float()
            if module == "attention.wo":  # what stands before the feed-forward half
                attended = head.get_submodule("attention")
                x = head.get_submodule("attention_norm")(trunk)
                out = trunk + attended(x, self.freqs_cis, None, None)
        hook.remove()
        direction = target.float()
        direction = direction / direction.square().mean(-1, keepdim=True).sqrt()
        wanted = direction * target.float().square().mean(-1).sqrt().median()
        rows = torch.randperm(trunk.shape[0] * (WINDOW - k + 1))[:24_000]
        inputs = found[0][:, : 1 - k].flatten(0, 1)[rows]
        weight = head.get_parameter(f"{module}.weight")
        rest = (wanted[:, k - 1 :] - out[:, : 1 - k].float()).flatten(0, 1)[rows]
        rest += (1 - keep) * F.linear(inputs, weight)
        square = inputs.t() @ inputs
        square.diagonal().add_(ridge * square.diagonal().mean())
        change = torch.linalg.solve(square.double(), (inputs.t() @ rest).double()).t()
        weight.copy_(keep * weight + change)

    def run(self, kind: str) -> dict[str, Any]:
        """Train from one start; figures by step."""
        begun, model = time.monotonic(), self.start(kind)
        figures: dict[str, Any] = {"start": kind, "0": self.evaluate(model)}
        parameters = [p for head in model.extra_heads for p in head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
        weight = model.output.weight[self.frequent].bfloat16()
        trunk, _, choice = self.train
        chance = random.Random(1)
        for step in range(1, STEPS + 1):
            rows = torch.tensor(chance.sample(range(len(trunk)), ROWS))
            falling = max(0.05, 1 - max(0, step - 100) / (STEPS - 100))
            optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, step / 20) * falling
            for k, state in self.states(model, trunk[rows]):
                y = self.place[choice[rows][:, k - 1 :]].flatten()
                known = state[:, : 1 - k].flatten(0, 1)[y >= 0].bfloat16()
                F.cross_entropy(F.linear(known, weight).float(), y[y >= 0]).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step in MARKS:
                figures[str(step)] = self.evaluate(model)
        return {**figures, "seconds": round(time.monotonic() - begun, 1)}


def main() -> None:
    """Run every start in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("starts", nargs="*", default=STARTS)
    results = Path(__file__).parent / "results/head_starts.jsonl"
    parser.add_argument("--out", type=Path, default=results)
    args = parser.parse_intermixed_args()
    torch.manual_seed(0)
    bench = Bench(args.model)
    with args.out.open("a", encoding="utf-8") as file:
        for kind in args.starts:
            line = json.dumps(bench.run(kind))
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()


if __name__ == "__main__":
    main()
