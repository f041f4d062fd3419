"""The text that a model and its export are compared on, and their tokenizers on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from weighted_mtp.core.errors import UserError, one_line
from weighted_mtp.data.tokens.tokenizers import Tokenizer, load_tokenizer
from weighted_mtp.evaluation.export_check import ExportCheck
from weighted_mtp.models.meta_mtp.layouts.side_files import tokenizer_file
from weighted_mtp.models.meta_mtp.transformer import Transformer

TEXT = '''\
The river rose in the night, and by morning the lower fields were under water. Nobody was
surprised: it had rained for nine days, and the old people had said so from the first.

def largest(numbers: list[int]) -> int:
    """Return the largest of the numbers; 0 if there are none."""
    best = 0
    for number in numbers:
        if number > best:
            best = number
    return best

for word in ("alpha", "beta", "gamma"):
    print(word, len(word), word.upper())

In 1905 the company had 12 ships and about 340 men; by 1921 it had 47 ships, 2,150 men and an
office in every port from Trieste to Alexandria. Its ledgers, kept in violet ink, list coal, rope,
bread & salt.
'''
"""Read where no text is given."""
_ROW = 64


def rows_to_read(
    text: str | None,
    tokens: int,
    folders: tuple[Path, Path],
    sides: tuple[Transformer, Transformer],
    check: ExportCheck,
) -> list[Tensor]:
    """The tokens to read, `[1, S]` each, once the tokenizers have been compared.

    Args:
        text: None: `TEXT`, or random tokens where neither side has a tokenizer.
        tokens: how many at most.
        folders, sides: of MODEL and of the export.

    Raises:
        UserError: the text is too short, or MODEL has no tokenizer for it.
    """
    model, export = sides
    room = min(model.max_positions, export.max_positions)
    length = min(_ROW, room // 2, tokens)
    ids = _ids(text, *folders, check)
    size = min(model.args.vocab_size, export.args.vocab_size)
    if ids is None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(size, (tokens,), generator=generator).tolist()
        check.notes.append("no tokenizer on either side; random tokens were read")
    ids = [token for token in ids if token < size][:tokens]
    if len(ids) < 2 or length < 2:
        raise UserError(f"the text has {len(ids)} token(s); give a longer one, or more --tokens")
    rows = [ids[i : i + length] for i in range(0, len(ids), length)]
    device = model.tok_embeddings.weight.device
    return [torch.tensor([row], device=device) for row in rows if len(row) > 1]


def _ids(text: str | None, model_dir: Path, base: Path, check: ExportCheck) -> list[int] | None:
    has = [tokenizer_file(folder) is not None for folder in (model_dir, base)]
    if not any(has):
        if text is not None:
            raise UserError(f"{model_dir}: has no tokenizer for --text; leave the option out")
        return None
    text = TEXT if text is None else text
    if not has[0]:
        check.notes.append("MODEL has no tokenizer; the export's was not compared")
        return load_tokenizer(base).encode(text)
    ours = load_tokenizer(model_dir)
    ids = ours.encode(text)
    if not has[1]:
        check.failures.append("tokenizer: the export has none")
        return ids
    readers: dict[str, Callable[[], list[int] | None]] = {
        "weighted-mtp": lambda: load_tokenizer(base).encode(text),
        "transformers": lambda: _ids_of_transformers(text, ours, base),
    }
    for reader, read in readers.items():
        try:
            found = read()
        except UserError as error:
            check.failures.append(f"tokenizer: {error}")
            continue
        if found is not None and found != ids:
            check.failures.append(f"tokenizer: {_first_difference(ids, found)} (by {reader})")
    return ids


def _first_difference(ours: list[int], theirs: list[int]) -> str:
    if ours[: len(theirs)] == theirs[: len(ours)]:
        return f"the text has {len(ours)} tokens in MODEL, {len(theirs)} in the export"
    pairs = enumerate(zip(ours, theirs, strict=False))
    at, (one, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    return f"token {at} of the text is {one} in MODEL, {other} in the export"


def _ids_of_transformers(text: str, tokenizer: Tokenizer, base: Path) -> list[int] | None:
    """As `tokenizer.json` has them; None without one, or where the text spells control tokens,
    which others encode as such."""
    if not (base / "tokenizer.json").is_file() or any(name in text for name in tokenizer.control):
        return None
    from tokenizers import Tokenizer as Backend  # of transformers

    try:
        found: list[int] = (
            Backend.from_file(str(base / "tokenizer.json"))
            .encode(text, add_special_tokens=False)
            .ids
        )
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{base / 'tokenizer.json'}: {one_line(error, 120)}") from error
    return found
