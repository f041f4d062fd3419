"""`weighted-mtp chat`: a conversation with a chat model, a line at a time.

Standard output holds the answers, as they are written; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import sys
import time

from weighted_mtp.cli.arguments.chat import LONGEST_ANSWER
from weighted_mtp.cli.decoding_options import check_heads, decoding_options
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.core.terminal import printable
from weighted_mtp.core.types import Message
from weighted_mtp.data.templates import CHAT
from weighted_mtp.data.tokens.chat import user_turn
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint
from weighted_mtp.pipelines.evaluating import decoding_figures
from weighted_mtp.pipelines.evaluating.writer import ModelWriter, check_chat, row_seed

RESET, EXIT = "/reset", "/exit"


class Chat:
    """A conversation as it grows.

    Args:
        writer: writes the answers.
        room: tokens of a prompt that leaves room for an answer.
        system: a message that stays before all others; None for none.
        stops: strings that end an answer.

    Attributes:
        history: the turns that the model still sees, by user and assistant in turn.
    """

    def __init__(
        self,
        writer: ModelWriter,
        room: int,
        system: str | None = None,
        stops: tuple[str, ...] = (),
    ) -> None:
        self._writer, self._room, self._stops = writer, room, stops
        self._system: list[Message] = []
        if system is not None:
            self._system.append({"role": "system", "content": system})
        self.history: list[Message] = []
        self._answers = 0
        writer.encode([*self._system, user_turn("x")])  # a template may refuse system messages

    def reset(self) -> None:
        """Forget all turns."""
        self.history.clear()

    def answer(self, text: str) -> None:
        """Print the answer to a user's message as it is written. Ctrl-C ends the answer, of which
        what was written stays in the history.

        Raises:
            UserError: the message does not fit into the model's context, or the template refuses
                it; it is forgotten then.
        """
        self.history.append(user_turn(text))
        pieces: list[str] = []
        try:
            ids = self._fitting()
            stream = self._writer.stream(ids, row_seed("chat", self._answers), self._stops)
            started = time.monotonic()
            for (piece,) in stream:
                pieces.append(piece.text)
                print(piece.text, end="", flush=True)
            self._writer.figures.add(stream.report, 1, time.monotonic() - started)
            print(flush=True)
        except UserError:
            self.history.pop()
            raise
        except KeyboardInterrupt:
            print(flush=True)
            say("[stopped]")
        self._answers += 1
        self.history.append({"role": "assistant", "content": "".join(pieces).strip()})

    def _fitting(self) -> list[int]:
        """The prompt, without the oldest turns if there is no room for them."""
        kept = list(self.history)
        while len(ids := self._writer.encode([*self._system, *kept])) > self._room:
            if len(kept) <= 1:
                raise UserError(
                    f"the message has {len(ids)} tokens with its template, and the model's "
                    f"positions leave {self._room} beside the answer; shorten it, or lower "
                    "--max-new-tokens"
                )
            del kept[:2]  # a question and its answer
        dropped = (len(self.history) - len(kept)) // 2
        self.history = kept
        if dropped:
            say(f"the context is full: {dropped} messages and their answers were dropped")
        return ids


def run(args: argparse.Namespace) -> int:
    """Answer line after line until /exit or the end of the input."""
    options = decoding_options(args)
    model_dir = find_model(args.checkpoint)
    check_heads(args, args.checkpoint)
    check_chat(args.checkpoint, CHAT)
    positions = inspect_checkpoint(model_dir).args.max_seq_len
    longest = options.max_new_tokens or max(1, min(LONGEST_ANSWER, positions // 2))
    if longest >= positions:
        raise UserError(f"--max-new-tokens {longest}: the model has {positions} positions in all")

    writer = ModelWriter(
        args.checkpoint,
        args.device,
        options.sampling,
        longest,
        args.dtype,
        options.speculation,
    )
    chat = Chat(writer, positions - longest, args.system, options.stops)
    asks = sys.stdin.isatty()
    if asks:
        say(f"{RESET} forgets the conversation, {EXIT} ends it, Ctrl-C stops an answer")
    failed = False
    while (line := _line(asks)) is not None:
        if line == EXIT:
            break
        if line == RESET:
            chat.reset()
        elif line:
            try:
                chat.answer(line)
            except UserError as error:  # the conversation goes on without the message
                say(f"error: {printable(str(error))}")
                failed = True
    if writer.figures.report.tokens:
        say(decoding_figures.line(writer.figures.record()))
    return 2 if failed and not asks else 0


def say(text: str) -> None:
    """Tell the person, not the reader of the answers."""
    print(text, file=sys.stderr, flush=True)


def _line(asks: bool) -> str | None:
    """The next line without blanks around it; None at the end."""
    if asks:
        print("> ", end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.readline()
    except (UnicodeDecodeError, OSError, ValueError) as error:
        raise UserError(f"standard input: cannot be read ({error})") from error
    if not line:
        return None
    return line.strip()
