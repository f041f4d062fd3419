"""`weighted-mtp generate`: continue prompts with a checkpoint.

Standard output gets the texts (with --json: records) and nothing else; the last line on standard
error has time, throughput and acceptance.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from weighted_mtp.cli.decoding_options import add_decoding_arguments, check_heads, decoding_options
from weighted_mtp.cli.generate_prompts import Prompt, add_prompt_arguments, read_prompts
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import given_path
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.core.types import Message
from weighted_mtp.data.collators import CHAT, TEMPLATE_NAMES, TEMPLATES
from weighted_mtp.data.tokens.chat import user_turn
from weighted_mtp.decoding import Completion
from weighted_mtp.pipelines.evaluating import decoding_figures
from weighted_mtp.pipelines.evaluating.writer import (
    ModelWriter,
    check_chat,
    row_seed,
    rows_together,
    template_of,
    warn_of_chat_model,
)


@dataclass(frozen=True)
class Asked:
    """A text to generate.

    Attributes:
        number: index of the prompt.
        sample: index among the texts of the prompt.
        ids: tokens of the prompt.
    """

    number: int
    sample: int
    prompt: Prompt
    ids: list[int]

    @property
    def seed(self) -> int:
        """See `row_seed`."""
        return row_seed(str(self.number), self.sample)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `generate`."""
    parser.add_argument(
        "checkpoint",
        type=given_path,
        help="a run, a checkpoint, a model directory, or ORG/NAME on the Hugging Face hub",
    )
    add_prompt_arguments(parser)
    parser.add_argument(
        "--template",
        choices=list(TEMPLATE_NAMES),
        help="prompt template (default: the one of the run; chat is the chat template of the "
        "tokenizer; raw continues the text as it is)",
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="with --template chat: the system message before prompts"
    )
    parser.add_argument("--n-samples", type=int, default=1, metavar="N", help="texts per prompt")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="texts at a time (default 16; with --tree 1)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object per line: text, tokens, finish, …",
    )
    parser.add_argument(
        "--logprobs",
        action="store_true",
        help="with --json: add the log-probabilities of the tokens",
    )
    add_decoding_arguments(parser, 256)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as stored)")


def run(args: argparse.Namespace) -> int:
    """Print the generated texts."""
    options = decoding_options(args)
    args.batch_size = rows_together(args.batch_size, 16, options.speculation)
    for name in ("n_samples", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if args.n_samples > 1 and options.sampling.greedy:
        raise UserError("--n-samples: greedy texts are identical; set --temperature above 0")
    if args.logprobs and not args.json:
        raise UserError("--logprobs needs --json")
    prompts = read_prompts(args)
    find_model(args.checkpoint)  # first, for a clear error where there is no model
    check_heads(args, args.checkpoint)
    template = args.template or template_of(args.checkpoint)
    if args.system is not None and template != CHAT:
        raise UserError("--system goes with --template chat")
    warn_of_chat_model(args.checkpoint, template)
    check_chat(args.checkpoint, template)
    writer = ModelWriter(
        args.checkpoint,
        args.device,
        options.sampling,
        options.max_new_tokens or 0,
        args.dtype,
        options.speculation,
    )
    asked = _asked(writer, prompts, template, args.n_samples, args.system)
    try:
        _print_texts(args, writer, asked, options.stops)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    print(decoding_figures.line(writer.figures.record()), file=sys.stderr)
    return 0


def _asked(
    writer: ModelWriter,
    prompts: Sequence[Prompt],
    template: str,
    n_samples: int,
    system: str | None = None,
) -> list[Asked]:
    """Return every text to generate; each prompt is rendered and tokenized once.

    Raises:
        UserError: a prompt is too long for the model, or empty.
    """
    asked = []
    for number, prompt in enumerate(prompts):
        given: str | list[Message]
        if template == CHAT:
            given = [user_turn(prompt.text, prompt.input)]
            if system is not None:
                given = [{"role": "system", "content": system}, *given]
        else:
            given = TEMPLATES[template].render(prompt.text, prompt.input)
        ids = writer.encode(given)
        if not ids:
            raise UserError(f"prompt {number + 1} is empty; give at least one character")
        if len(ids) > writer.longest_prompt:
            raise UserError(
                f"prompt {number + 1} has {len(ids)} tokens, the model has room for "
                f"{max(0, writer.longest_prompt)} beside the new ones; shorten it, or lower "
                "--max-new-tokens"
            )
        asked += [Asked(number, sample, prompt, ids) for sample in range(n_samples)]
    return asked


def _print_texts(
    args: argparse.Namespace, writer: ModelWriter, asked: Sequence[Asked], stops: Sequence[str]
) -> None:
    """Stream a single text to a terminal; print several, or into a pipe, as they complete."""
    if len(asked) == 1 and not args.json and sys.stdout.isatty():
        try:
            for piece in _pieces(writer, asked[0], stops):
                print(piece, end="", flush=True)
        finally:
            print()  # after Ctrl-C too
        return
    headed = len(asked) > 1 and sys.stdout.isatty()
    for start in range(0, len(asked), args.batch_size):
        batch = asked[start : start + args.batch_size]
        seeds = [one.seed for one in batch]
        written = writer.write([one.ids for one in batch], seeds, stops, args.logprobs)
        for one, completion in zip(batch, written, strict=True):
            if headed:
                print(f"── prompt {one.number + 1}, text {one.sample + 1}", file=sys.stderr)
            print(_record(one, completion, args.logprobs) if args.json else completion.text)
            sys.stdout.flush()


def _pieces(writer: ModelWriter, one: Asked, stops: Sequence[str]) -> Iterator[str]:
    """Yield the text as it is generated."""
    start = time.monotonic()
    stream = writer.stream(one.ids, one.seed, stops)
    for (piece,) in stream:
        yield piece.text
    writer.figures.add(stream.report, 1, time.monotonic() - start)


def _record(one: Asked, completion: Completion, logprobs: bool) -> str:
    record = {
        "number": one.number,
        "sample": one.sample,
        "prompt": one.prompt.text,
        **({"input": one.prompt.input} if one.prompt.input else {}),
        "text": completion.text,
        "tokens": completion.tokens,
        **({"logprobs": completion.logprobs} if logprobs else {}),
        "finish": completion.finish,
    }
    return json.dumps(record)
