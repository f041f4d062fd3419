"""Options of everything that decodes: `generate` and `evaluate` share them, and their meaning."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from weighted_mtp.core.errors import UserError
from weighted_mtp.decoding import LossyTypical, Sampling, Speculation
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint

_AUTO, _ALL, _OFF = "auto", "all", "off"
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


@dataclass(frozen=True)
class DecodingOptions:
    """How a model is to write.

    Attributes:
        max_new_tokens: None where the command has a default of its own.
        stops: strings that end a text, besides those of the prompt's own style.
        speculation: None decodes plainly.
    """

    max_new_tokens: int | None
    sampling: Sampling
    stops: tuple[str, ...]
    speculation: Speculation | None


def add_decoding_arguments(
    parser: argparse.ArgumentParser, new_tokens: int | None, new_tokens_help: str = ""
) -> None:
    """Add them to a command.

    Args:
        new_tokens, new_tokens_help: the command's default, and what its help says of it.
    """
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=new_tokens,
        metavar="N",
        help=f"at most so many tokens each ({new_tokens_help or f'default {new_tokens}'})",
    )
    group.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="keep the likeliest, P of the whole"
    )
    group.add_argument("--top-k", type=int, metavar="K", help="keep the K likeliest tokens")
    group.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="drop below P times the likeliest"
    )
    group.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X", help="1, the default, is none"
    )
    group.add_argument("--seed", type=int, default=0, help="the same seed gives the same texts")
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="ends a text, which does not include it; \\n is a new line, \\t a tab, \\\\ a "
        "backslash; may be given several times",
    )
    group.add_argument(
        "--speculate",
        nargs="?",
        const=_ALL,
        default=_AUTO,
        metavar="K",
        help="the model's heads draft K tokens at a time (no K: as many as it has), which the next "
        "pass verifies: greedy texts stay the same, sampled ones keep their distribution (default: "
        "as many as pay, by --adaptive)",
    )
    group.add_argument(
        "--no-speculate",
        dest="speculate",
        action="store_const",
        const=_OFF,
        help="one token at a time",
    )
    group.add_argument(
        "--adaptive",
        action="store_true",
        help="draft fewer tokens where drafts are not kept",
    )
    group.add_argument(
        "--lossy-typical",
        action="store_true",
        help="LOSSY: keep drafts that are merely likely enough (Medusa's typical acceptance); "
        "faster, and no longer the text of the model",
    )
    group.add_argument(
        "--ties",
        default="auto",
        metavar="RULE",
        help="greedy near-ties: exact (read again; the text depends on nothing but the model), "
        "fast, or auto (exact in float32, fast in bfloat16; the default)",
    )


def decoding_options(args: argparse.Namespace) -> DecodingOptions:
    """What was asked for.

    Raises:
        UserError: a value that cannot be, or an option that would do nothing.
    """
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UserError("--max-new-tokens must be at least 1")
    try:
        sampling = Sampling(
            args.temperature,
            args.top_p,
            args.seed,
            args.top_k,
            args.min_p,
            args.repetition_penalty,
            args.ties,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    if not all(args.stop):
        raise UserError("--stop: an empty text would end everything at once; give some")
    stops = tuple(_unescaped(text) for text in args.stop)
    return DecodingOptions(args.max_new_tokens, sampling, stops, _speculation(args))


def check_heads(args: argparse.Namespace, model: Path) -> None:
    """Refuse `--speculate`, where it was asked for, for a model that has nothing to draft with.

    Raises:
        UserError: it has the next-token head alone.
    """
    if args.speculate in (_AUTO, _OFF):
        return
    if inspect_checkpoint(model).args.n_future_tokens == 1:
        raise UserError(
            f"--speculate: {model} has no heads to draft with, only the next-token head; leave "
            "--speculate away, or give it heads (weighted-mtp convert --add-heads N) and train them"
        )


def _speculation(args: argparse.Namespace) -> Speculation | None:
    if args.speculate == _OFF:
        for name in ("adaptive", "lossy_typical"):
            if getattr(args, name):
                raise UserError(f"--{name.replace('_', '-')} does not go with --no-speculate")
        return None
    heads = None
    if args.speculate not in (_AUTO, _ALL):
        if not re.fullmatch(r"[+-]?\d+", args.speculate):
            raise UserError(
                f"--speculate {args.speculate!r}: give a number of heads, or nothing for all; "
                "the checkpoint goes before it"
            )
        heads = int(args.speculate)
        if heads < 1:
            raise UserError(f"--speculate {heads}: K must be at least 1")
    lossy = LossyTypical() if args.lossy_typical else None
    adaptive = args.adaptive or args.speculate == _AUTO
    return Speculation(heads, adaptive, lossy_typical=lossy)


def _unescaped(text: str) -> str:
    """A shell has no easy way to write a new line."""
    return re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match.group()], text)
