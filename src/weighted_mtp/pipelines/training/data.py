"""From a recipe to what the trainer reads: rows, pairs of rows, or windows of text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from weighted_mtp.core.config.data import MicroConfig
from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.processes import available_cores
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.datasets import write_jsonl
from weighted_mtp.data.loading import Examples, Groups, RowGroups, ShuffledGroups
from weighted_mtp.data.packing import Group
from weighted_mtp.data.rows.metadata import Indices
from weighted_mtp.data.rows.store import RowStore, open_rows
from weighted_mtp.data.sampling import RowOrder
from weighted_mtp.data.tokens.row_tokens import TokenisedRows, tokenise
from weighted_mtp.data.tokens.text_tokens import open_text
from weighted_mtp.data.tokens.tokenizers import spelled_ends
from weighted_mtp.data.tokens.windows import PackedWindows
from weighted_mtp.evaluation.sandbox.host import Sandbox
from weighted_mtp.micro_tasks import Family, Split, generate, up_to
from weighted_mtp.micro_tasks.originals import posed_problems
from weighted_mtp.pipelines.checkpoint_utils import saved_state
from weighted_mtp.pipelines.generating.journal import template_of_rows
from weighted_mtp.pipelines.training.mutated import WithoutMutations, mutated_spans
from weighted_mtp.pipelines.training.objectives import Objective
from weighted_mtp.pipelines.training.reference import Annotate, reference_digest, with_reference
from weighted_mtp.pipelines.training.stored_states import with_states
from weighted_mtp.runtime import distributed

log = get_logger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """What the trainer reads.

    Attributes:
        train: an endless sequence; the same on every rank.
        validation: held-out groups, each of one row; empty if there are none.
        size: what there is to train on, in words.
        sources: fingerprints of the content of what was read, saved with every checkpoint (see
            `resuming`).
        annotate: adds to a batch what the objective needs and the rows did not bring.
    """

    train: Groups
    validation: Sequence[Group]
    size: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    annotate: Annotate | None = None


def training_data(
    recipe: Recipe,
    collator: AlpacaCollator,
    objective: Objective,
    data_dir: Path,
    checkpoint: Path | None = None,
    vocab_size: int | None = None,
) -> TrainingData:
    """Open, draw and tokenise the data of a recipe; on resume only what remains to be read, in the
    order that was planned when the run began.

    Args:
        vocab_size: of the model, if rows are to be checked for tokens that it lacks.

    Raises:
        UserError: a file is missing or invalid, or has nothing to learn from.
    """
    if recipe.data.source == "text":
        return _windows(recipe, collator, objective)
    files = {split: rows_file(recipe, split, data_dir) for split in SPLITS}
    if files["train"] is None:
        raise UserError("data.train is not set")
    _warn_of_template(recipe, files["train"])
    store = open_rows(files["train"], recipe.data.cache_dir, recipe.data.processes)
    planned, end = _reads(recipe, objective, checkpoint)
    order = RowOrder(
        store.metadata,
        objective.candidates(store.metadata),
        recipe.data.sampling,
        recipe.runtime.seed,
        planned,
        recipe.objective.value.max_pairs_per_problem if objective.group_size == 2 else None,
    )
    tokenised = tokenise_rows(store, order.used(end), collator, recipe, vocab_size)
    examples: Examples = tokenised
    if objective.needs_reference:
        examples = with_reference(recipe, collator, tokenised, store.digest, objective.heads)
    if objective.needs_mutations:
        micro = recipe.data.micro
        problems = posed_problems(micro.n_problems, micro.seed, "train", micro_families(micro))
        spans = mutated_spans(store, tokenised.rows, collator, problems, micro.seed)
        examples = WithoutMutations(tokenised, spans)
    sources = {"train": store.digest, "tokenizer": collator.tokenizer.fingerprint}
    if recipe.data.states is not None:
        stored = with_states(recipe.data.states, collator, examples, store.digest)
        sources["states"], examples = stored.states.manifest.digest, stored
    if checkpoint is None:  # else it has what was counted
        objective.read_rows(
            tokenised, collator.tokenizer, vocab_size or collator.tokenizer.vocab_size
        )
    if objective.needs_reference and distributed.is_main_process():  # only it compares them
        sources["reference"] = reference_digest(recipe)
    validation: list[Group] = []
    if files["validation"] is not None:
        held_out = open_rows(files["validation"], recipe.data.cache_dir, recipe.data.processes)
        sources["validation"] = held_out.digest
        validation = _held_out(recipe, collator, held_out, vocab_size)
    size = f"{len(tokenised):,} of {len(store):,} training rows"
    return TrainingData(RowGroups(order, examples), validation, size, sources)


def _warn_of_template(recipe: Recipe, path: Path) -> None:
    """Rows that a model wrote after one template are not what it writes after another."""
    written, template = template_of_rows(path), recipe.data.template
    if written not in (None, template) and distributed.is_main_process():
        log.warning(
            "data.template is %s, but `prepare self` wrote %s with the template %s: heads would "
            "learn to draft after prompts that they will not see; set data.template=%s",
            template,
            path,
            written,
            written,
        )


def _reads(recipe: Recipe, objective: Objective, checkpoint: Path | None) -> tuple[int, int]:
    """How many groups the order is planned for, and the position that this training ends at."""
    training = recipe.training
    per_step = training.batch_size // objective.group_size
    planned = training.steps * per_step
    state = {} if checkpoint is None else saved_state(checkpoint)
    if "reader" not in state:
        return planned, planned
    left = max(0, training.steps - state["step"]) * per_step
    return state["reader"]["planned"], state["reader"]["position"] + left


def _held_out(
    recipe: Recipe, collator: AlpacaCollator, store: RowStore, vocab_size: int | None
) -> list[Group]:
    """Select every row that has something to predict."""
    rows = tokenise_rows(store, np.arange(len(store)), collator, recipe, vocab_size)
    return [(example,) for i in range(len(store)) if (example := rows[i]).has_targets]


def _windows(recipe: Recipe, collator: AlpacaCollator, objective: Objective) -> TrainingData:
    """Read windows of running text."""
    data = recipe.data
    streams = open_text(data.text, collator.tokenizer, data.cache_dir, data.processes)
    length, n = data.max_length, objective.heads
    train = PackedWindows(streams.train, length, n)
    sources = {"train": streams.train.digest, "tokenizer": collator.tokenizer.fingerprint}
    held_out: Sequence[Group] = []
    if streams.validation is not None:
        held_out = PackedWindows(streams.validation, length, n)
        sources["validation"] = streams.validation.digest
    size = f"{len(streams.train):,} training tokens in {len(train):,} windows"
    return TrainingData(ShuffledGroups(train, recipe.runtime.seed), held_out, size, sources)


def tokenise_rows(
    store: RowStore,
    wanted: Indices,
    collator: AlpacaCollator,
    recipe: Recipe,
    vocab_size: int | None = None,
) -> TokenisedRows:
    """Tokenise rows, cached for all runs; warn how many were cut, how many have a prompt that
    leaves no room for a response (these are skipped), and how many contain the name of BOS or EOS.

    Raises:
        UserError: no row has a response token within `data.max_length`, or one has a token that
            the model lacks.
    """
    data = recipe.data
    rows = tokenise(store, wanted, collator, data.cache_dir, data.processes or available_cores())
    if vocab_size is not None and collator.tokenizer.vocab_size > vocab_size:
        rows.check_ids(vocab_size)
    empty = len(rows.without_response)
    if rows.truncated or empty:
        log.warning(
            "%d of %d rows are longer than data.max_length %d and were cut; %d of them have a "
            "prompt that fills it and are skipped",
            rows.truncated,
            len(rows),
            collator.max_length,
            empty,
        )
    if rows.spelled:
        log.warning(
            "%d of %d rows contain %s as text, which stays text: each row gets one BOS and one EOS "
            "automatically; remove the text from the data if it was meant as these",
            rows.spelled,
            len(rows),
            " or ".join(spelled_ends(collator.tokenizer)),
        )
    if empty == len(rows):
        raise UserError(f"data.max_length {collator.max_length} leaves no row a response; raise it")
    return rows


SPLITS: tuple[Split, ...] = ("train", "validation")


def rows_file(recipe: Recipe, split: Split, data_dir: Path) -> Path | None:
    """Return the file with the rows of a split; None if there is none. The main process generates
    micro tasks and labels them by running every program; the name encodes what they depend on."""
    if recipe.data.source == "text":
        return None
    if recipe.data.source == "jsonl":
        return recipe.data.train if split == "train" else recipe.data.validation
    micro = recipe.data.micro
    training = split == "train"
    size = micro.n_problems if training else micro.n_validation
    right = micro.correct_per_problem if training else 1
    wrong = micro.incorrect_per_problem if training else min(1, micro.incorrect_per_problem)
    each = f"{right}+{wrong}" if wrong else f"{right}"
    kinds = hashlib.sha256(micro.model_dump_json().encode()).hexdigest()[:8]
    name = f"micro-{split}-{size}x{each}-seed{micro.seed}-{kinds}.jsonl"
    path = data_dir / "data" / name
    if distributed.is_main_process() and not path.exists():
        log.info("generating %s %s problems and running their solutions …", f"{size:,}", split)
        families = micro_families(micro)
        with Sandbox() as judge:
            rows = generate(size, micro.seed, judge, split, right, wrong, families)
        write_jsonl(path, rows)
    distributed.barrier()
    return path


def micro_families(micro: MicroConfig) -> tuple[Family, ...]:
    """Return the families a recipe draws from; raise `UserError` if there are none."""
    return up_to(micro.max_difficulty, micro.families, micro.max_constant, micro.marked_names)
