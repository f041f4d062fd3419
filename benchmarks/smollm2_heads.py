"""Three extra heads for a model that has none, so that it can draft for itself.

    python benchmarks/smollm2_heads.py --model FOLDER --out FOLDER [--minutes 55]

FOLDER holds SmolLM2-135M-Instruct, or any Llama in a layout the library reads, and its tokenizer.
Trunk, embeddings, norm and first head stay as they are, so greedy text stays what it was; the extra
heads begin as copies of the last block (`add_heads`) and learn what the first head is going to
choose: the target of head k at t is the frozen model's own greedy token k places on.

Method. The trunk never changes, so its states are computed once, in bfloat16 (1152 bytes a position
at width 576), and the heads then train on the stored states. `--data-share` of the time goes into
them, by turns, `--own-share` of it to the second kind:

    text   windows of Python source (the standard library's), the first head's choice at every place
    own    what the model writes, greedily, after openings of functions and classes found there

The rest of the time goes into the heads: AdamW, its rate falling linearly with the clock, bfloat16
autocast, batches of about 2048 positions. The softmax runs over the `--vocabulary` most frequent
targets only: over all 49152 tokens it would take 113 MFLOP a head and position, its block 21.

Documents that a hash holds out (5 %) give no training text. "held out" lines in the log measure on
them, over the whole vocabulary, the share of places where heads 2 … n name what the first head is
going to choose; for the model's own text the last figure is the tokens that a pass of speculative
decoding would decide. The last line comes of decoding held-out openings. To train on:

    python benchmarks/smollm2_heads.py --model OUT --out OUT [--states FILE]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smollm2_states import NEW, Frozen, Source, Stored, batches, gather, places, say
from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.data.tokens.tokenizers import load_tokenizer
from weighted_mtp.decoding import Speculation, Stopping, complete
from weighted_mtp.models.meta_mtp.add_heads import add_heads
from weighted_mtp.models.meta_mtp.checkpoints import (
    check_destination,
    find_tokenizer_files,
    load_meta_mtp_model,
    save_native,
)
from weighted_mtp.models.meta_mtp.layouts.side_files import read_config_fields
from weighted_mtp.models.meta_mtp.transformer import Transformer

SAVE_SECONDS = 420.0


def frequent(stored: Sequence[Stored], size: int) -> Tensor:
    """The most frequent targets, `[size]` or fewer."""
    counts: Counter[int] = Counter()
    for part in stored:
        counts.update(part.targets[..., 0][part.targets[..., 0] >= 0].tolist())
    kept = counts.most_common(size)
    say(
        "vocabulary",
        size=len(kept),
        of=len(counts),
        covers=sum(c for _, c in kept) / counts.total(),
    )
    return torch.tensor(sorted(token for token, _ in kept))


class Heads:
    """The extra heads over stored states."""

    def __init__(self, model: Transformer) -> None:
        self.blocks: Sequence[nn.Module] = list(model.extra_heads)
        self._model = model
        self._unembedding = model.output.weight.detach().bfloat16()

    def states(self, trunk: Tensor) -> Iterator[Tensor]:
        """`[B, S, D]` of the trunk → each head's normalised state `[B, S, D]`."""
        freqs_cis = self._model.freqs_cis[: trunk.shape[1]]
        for block in self.blocks:
            with torch.autocast("cpu", torch.bfloat16):
                state = self._model.norm(block(trunk, freqs_cis))
            yield state

    def _name(self, states: Tensor) -> Tensor:
        """`[S, D]` → the likeliest tokens `[S]`."""
        return F.linear(states.bfloat16(), self._unembedding).argmax(-1)

    @torch.no_grad()
    def agreement(self, stored: Sequence[Stored]) -> dict[str, list[float]]:
        """Per kind of text: share of places where head 2 … n names the target, and for the model's
        own text, last, tokens per forward."""
        found: dict[str, list[float]] = {}
        for kind in ("text", "own"):
            hits, valid = [], []
            for trunk, targets, own in stored:
                if own != (kind == "own"):
                    continue
                named = [torch.stack([*map(self._name, state)]) for state in self.states(trunk)]
                hits.append((torch.stack(named, 2) == targets).flatten(0, 1))
                valid.append((targets >= 0).all(2).flatten())
            right = torch.cat(hits)[torch.cat(valid)].double()  # [places, n - 1]
            found[kind] = right.mean(0).tolist()
            if kind == "own":
                found[kind].append(1 + right.cumprod(1).sum(1).mean().item())
        return found


def train(
    model: Transformer,
    args: argparse.Namespace,
    stored: list[Stored],
    test: list[Stored],
    seconds: float,
) -> None:
    """Train the extra heads for so long; save now and then, and at the end."""
    heads, vocabulary = Heads(model), frequent(stored, args.vocabulary)
    # Where in the small vocabulary a token is; index -100, no target, lands behind the last token.
    place = torch.full((model.args.vocab_size - IGNORE_INDEX,), IGNORE_INDEX)
    place[vocabulary] = torch.arange(len(vocabulary))
    unembedding = model.output.weight.detach()[vocabulary].bfloat16()  # [V', D]
    parameters = [p for block in heads.blocks for p in block.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.95), weight_decay=0.01)
    start = saved = time.monotonic()
    losses: list[Tensor] = []
    for step, (trunk, targets) in enumerate(batches(stored, args.seed)):
        now = time.monotonic() - start
        if now > seconds:
            break
        rate = args.learning_rate * min(1.0, (step + 1) / 30) * max(0.02, 1 - now / seconds)
        optimizer.param_groups[0]["lr"] = rate
        part = []
        for head, state in enumerate(heads.states(trunk)):
            y = place[targets[..., head]]
            logits = F.linear(state[y >= 0].bfloat16(), unembedding)
            loss = F.cross_entropy(logits.float(), y[y >= 0])
            loss.backward()
            part.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(torch.stack(part))
        if (step + 1) % 20 == 0:
            say("train", step=step, loss=torch.stack(losses).mean(0).tolist())
            losses.clear()
        if time.monotonic() - saved > SAVE_SECONDS:
            say("held out", step=step, **heads.agreement(test))
            save(model, args)
            saved = time.monotonic()
    say("done", step=step, **heads.agreement(test))
    save(model, args)


def save(model: Transformer, args: argparse.Namespace) -> None:
    """Write the model; an earlier one stays until the new one is whole."""
    save_native(
        model,
        args.out,
        tokenizer_files=find_tokenizer_files(args.model),
        config_fields=read_config_fields(args.model),
        overwrite=True,
    )
    say("saved", to=str(args.out))


def main() -> None:
    """Gather, train, decode held-out prompts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=55.0)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--data-share", type=float, default=0.42)
    parser.add_argument("--own-share", type=float, default=0.65)
    parser.add_argument("--vocabulary", type=int, default=6144)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--states", type=Path, help="a file to keep them in, or to take them from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin = time.monotonic()
    check_destination(args.out, overwrite=True)
    torch.manual_seed(args.seed)
    tokenizer = load_tokenizer(args.model)
    base = load_meta_mtp_model(args.model, device="cpu", dtype="float32").requires_grad_(False)
    has_them = base.args.n_future_tokens == args.heads  # they are trained on
    model = base if has_them else add_heads(base, args.heads)
    for block in model.extra_heads:
        block.requires_grad_(True)
    narrow = load_meta_mtp_model(args.model, device="cpu", dtype="bfloat16")
    frozen = Frozen(narrow, args.heads, tokenizer.eos_id)
    unseen = Source(tokenizer, True, args.seed)
    with torch.inference_mode():
        test = [
            frozen.read([unseen.window() for _ in range(3)]),
            frozen.write([unseen.opening(64) for _ in range(16)]),
        ]
    say("before", **Heads(model).agreement(test))
    seconds = 60 * args.minutes
    source = Source(tokenizer, False, args.seed + 1)
    if args.states and args.states.is_file():
        stored = [Stored(*part) for part in torch.load(args.states, weights_only=True)]
    else:
        stored = gather(frozen, source, args.data_share * seconds, args.own_share)
        if args.states:
            torch.save([tuple(part) for part in stored], args.states)
    say("states", own=places(stored, True), text=places(stored, False))
    train(model, args, stored, test, seconds - (time.monotonic() - begin))
    prompts = [unseen.opening(length) for length in (16, 16, 64, 64, 128, 128, 256, 256)]
    _, report = complete(model, prompts, Stopping(NEW, tokenizer.eos_id), speculation=Speculation())
    say("decoded", tokens_per_forward=report.tokens_per_forward, acceptance=report.acceptance)


if __name__ == "__main__":
    main()
