"""Load a checkpoint for decoding: model, tokenizer and decoding options together."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from weighted_mtp.core.device import resolve_device
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.model_folder import find_model, has_chat_template
from weighted_mtp.core.types import Message
from weighted_mtp.data.templates import CHAT, RAW, TEMPLATES
from weighted_mtp.data.tokens.chat import NO_TEMPLATE, ChatTemplate
from weighted_mtp.data.tokens.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from weighted_mtp.decoding import (
    Completion,
    Sampling,
    Speculation,
    Stopping,
    Stream,
    complete,
)
from weighted_mtp.decoding.copies import Copies
from weighted_mtp.models.meta_mtp.adapter import MetaLlamaMTPAdapter
from weighted_mtp.models.meta_mtp.checkpoints import open_checkpoint
from weighted_mtp.models.meta_mtp.draft_vocabulary import check_stops
from weighted_mtp.models.meta_mtp.quantised import BITS, quantise
from weighted_mtp.models.meta_mtp.transformer import Transformer
from weighted_mtp.pipelines.checkpointing.model_start import warn_past_positions
from weighted_mtp.pipelines.evaluating.decoding_figures import DecodingFigures

_log = get_logger(__name__)


class ModelWriter:
    """Continues prompts.

    Args:
        path: a run, a checkpoint or a model directory.
        max_new_tokens: of each text.
        dtype: as `MetaLlamaMTPAdapter.from_pretrained` takes it, or `int8` or `int4`, to which the
            weights are then quantised; None keeps the stored one.
        speculation: draft with the model's heads; None decodes plainly, and so does a k of 1.

    Attributes:
        speculation: None if the model has no heads to draft with; the costs of an automatic tree
            have been measured.
        figures: cost of decoding so far.

    Raises:
        UserError: the checkpoint or its tokenizer is missing or damaged, they do not match, or the
            model has fewer heads than `speculation` asks for.
    """

    def __init__(
        self,
        path: Path,
        device: str,
        sampling: Sampling,
        max_new_tokens: int,
        dtype: str | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        source = open_checkpoint(path)  # find mistakes before the weights are loaded
        self.model_dir, shape = source.directory, source.args
        self.tokenizer = load_tokenizer(self.model_dir)
        check_vocabulary(self.tokenizer, shape.vocab_size, str(self.model_dir))
        k = heads_in_use(speculation, shape.n_future_tokens)
        if speculation is not None and speculation.draft_vocabulary and k > 1:
            stops = self.tokenizer.stop_ids
            check_stops(source.draft_ids, stops, shape.vocab_size, self.model_dir)
        bits = next((bits for bits in BITS if bits == dtype), None)
        stored = None if bits else dtype
        self._model = MetaLlamaMTPAdapter.from_pretrained(
            source, resolve_device(device), stored, initialize_value_head=False
        ).transformer
        if bits is not None:
            quantise(self._model, bits)
        self.speculation = None
        if speculation is not None and k > 1:
            self.speculation = speculation
        self._copies = Copies(self._model)
        self.figures = DecodingFigures(k)
        self._sampling, self._max_new_tokens = sampling, max_new_tokens
        self._decode = continuation_decoder(self.tokenizer)
        self._end_of_turn: tuple[str, ...] = ()  # of the chat template, once it is in use

    @property
    def model(self) -> Transformer:
        """The model itself."""
        return self._model

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that leaves room for the answer."""
        return self._model.max_positions - self._max_new_tokens

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """A prompt: BOS, if the model has one, and the text; messages by the tokenizer's chat
        template, whose end of turn from then on ends a text.

        Raises:
            UserError: there is no chat template, or it refuses the messages.
        """
        if not isinstance(prompt, str):
            return self._chat.encode_prompt(prompt)
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        return bos + self.tokenizer.encode(prompt)

    @cached_property
    def _chat(self) -> ChatTemplate:
        template = ChatTemplate(self.tokenizer)
        end = template.end_of_turn()
        self._end_of_turn = () if end is None else (end,)
        return template

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        row_seeds: Sequence[int],
        stops: Sequence[str] = (),
        logprobs: bool = False,
    ) -> list[Completion]:
        """Continue each prompt until EOS, a stop string or the limit.

        Args:
            row_seeds: one for each prompt, see `row_seed`.
            stops: strings that end a text and are not part of it. The name of a control token
                also stands for the token.
            logprobs: return the tokens' log-probabilities.

        Raises:
            UserError: a prompt leaves no room for the answer.
        """
        self._warn_of_length(prompts)
        start = time.monotonic()
        try:
            completions, report = complete(
                self._copies,
                prompts,
                self._stopping(stops),
                self._sampling,
                self.speculation,
                row_seeds,
                logprobs,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        self.figures.add(report, len(prompts), time.monotonic() - start)
        return completions

    def stream(self, prompt: Sequence[int], row_seed: int, stops: Sequence[str] = ()) -> Stream:
        """Continue one prompt piece by piece; the caller adds the report to the figures.

        Raises:
            UserError: the prompt leaves no room for the answer.
        """
        self._warn_of_length([prompt])
        try:
            return Stream(
                self._copies,
                [prompt],
                self._stopping(stops),
                self._sampling,
                self.speculation,
                [row_seed],
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def _warn_of_length(self, prompts: Sequence[Sequence[int]]) -> None:
        longest = max(map(len, prompts), default=0) + self._max_new_tokens
        where = f"{self.model_dir}: a prompt with {self._max_new_tokens} new tokens"
        warn_past_positions(longest, self._model.args, where)

    def _stopping(self, stops: Sequence[str]) -> Stopping:
        return self.stopping(stops, self._max_new_tokens, chat=True)

    def stopping(self, stops: Sequence[str], max_new_tokens: int, chat: bool = False) -> Stopping:
        """Stop at any end-of-sequence token, and at a control token that a stop string names: its
        name never appears in the text, because decoding leaves control tokens out.

        Args:
            chat: stop at the chat template's end of turn as well, if the template is in use.
        """
        control, eos = self.tokenizer.control, self.tokenizer.eos_id
        named = (*stops, *(self._end_of_turn if chat else ()))
        ends = self.tokenizer.stop_ids.union(control[stop] for stop in named if stop in control)
        eos_id = ends if ends != {eos} else eos
        return Stopping(max_new_tokens, eos_id, tuple(stops), self._decode)


def heads_in_use(speculation: Speculation | None, heads: int) -> int:
    """Return k for a model of so many heads, 1 in plain decoding.

    Raises:
        UserError: it has fewer.
    """
    try:
        return 1 if speculation is None else speculation.heads_of(heads)
    except ValueError as error:
        raise UserError(f"--speculate: {error}") from error


def rows_together(given: int | None, default: int, speculation: Speculation | None) -> int:
    """Return how many texts are decoded at a time: as given, or else the default, 1 for a tree of
    drafts.

    Raises:
        UserError: several are given for a tree.
    """
    if speculation is None or not isinstance(speculation.tree, int):
        return default if given is None else given
    if given is not None and given > 1:
        raise UserError(
            f"--tree drafts for one text at a time, and --batch-size {given} decodes several "
            "together; remove --batch-size, or --tree"
        )
    return 1 if given is None else given


def row_seed(name: str, sample: int) -> int:
    """Hash a problem and a sample number to the seed of one text.

    It depends on nothing else, so that neither batch size nor order nor the number of samples
    changes the text.
    """
    address = f"{name}\0{sample}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(address).digest()[:8], "little")


def continuation_decoder(tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    """Return a function that decodes tokens which follow others.

    Decoded alone they may lose a space (SentencePiece drops a leading one, which may belong to an
    indentation), so they are decoded after a letter.
    """
    before = tokenizer.encode("x")
    length = len(tokenizer.decode(before))
    return lambda ids: tokenizer.decode([*before, *ids])[length:]


def run_data(path: Path) -> dict[str, Any]:
    """Return the data section of the recipe by which `path` (a run or part of one) was trained;
    empty if it is not part of a run."""
    path = path.expanduser()
    here = path.resolve() if path.exists() else find_model(path)
    for folder in (here, *here.parents[:3]):
        config = folder / "config.yaml"
        if config.exists():
            from weighted_mtp.core.config.recipe import load_recipe_file  # pydantic takes a moment

            return load_recipe_file(config).data.model_dump()
    return {}


def template_of(path: Path) -> str:
    """Return the template of a run: `raw` after plain text. A bare model gets its own chat
    template, `chat`, and `alpaca` if it has none."""
    data = run_data(path)
    if not data and has_chat_template(find_model(path)):
        return CHAT
    return RAW if data.get("source") == "text" else str(data.get("template", "alpaca"))


def warn_of_chat_model(path: Path, template: str) -> None:
    """Warn if a chat model, not trained here with this template, is prompted by a template other
    than its own: it is likely to write worse."""
    trained = run_data(path).get("template")
    other = template in TEMPLATES and template not in (RAW, trained)
    if other and has_chat_template(find_model(path)):
        _log.warning(
            "%s: its tokenizer has a chat template, but the prompt is the template %s, which such "
            "a model does not expect; take its own with --template chat, or train the model with "
            "this one first",
            path,
            template,
        )


def check_chat(path: Path, template: str | None) -> None:
    """Raise `UserError`, before weights are read, if the chat template is asked for and the
    tokenizer has none."""
    if template == CHAT and not has_chat_template(model_dir := find_model(path)):
        raise UserError(f"{model_dir}: the tokenizer {NO_TEMPLATE}")


def sampling_identity(
    sampling: Sampling, speculation: Speculation | None, k: int
) -> dict[str, Any]:
    """Return the options of sampling and speculation that determine the texts; the others may
    change when an evaluation resumes. Drafts change what a seed draws, and which of two greedy
    near-ties wins unless ties are exact."""
    everything = asdict(sampling)
    chance = ("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty")
    certain = ("temperature", "repetition_penalty", "ties")
    found = {name: everything[name] for name in (certain if sampling.greedy else chance)}
    lossy = speculation is not None and speculation.lossy_typical is not None
    if speculation is not None and (lossy or not sampling.greedy or sampling.ties != "exact"):
        cost = speculation.fixed_cost
        found["speculation"] = {**asdict(speculation), "k": k, "token_cost": cost}
        if not isinstance(speculation.tree, int):  # as before there were trees
            del found["speculation"]["tree"]
        if speculation.draft_vocabulary:  # as before there were any; `model_identity` has the file
            del found["speculation"]["draft_vocabulary"]
    return found


def model_identity(path: Path) -> dict[str, Any]:
    """Identify a checkpoint without reading its weights, by sizes and modification times.

    Raises:
        UserError: it does not exist.
    """
    folder = find_model(path)
    weights = sorted(f for f in folder.rglob("*") if f.suffix in (".safetensors", ".pth", ".bin"))
    return {
        "path": (folder.relative_to(path) if path.exists() else Path(folder.name)).as_posix(),
        "files": {
            file.relative_to(folder).as_posix(): [status.st_size, status.st_mtime_ns]
            for file in weights
            for status in (file.stat(),)
        },
    }
