"""A corpus tokenised once: all documents as one stream of ids on disk, and where each begins.

A folder of the cache holds, for each split, `SPLIT.tokens` (uint16, or uint32 for more than 65,536
ids) and `SPLIT.offsets` (int64, one more than documents), and `stream.json`, which says what it was
made of. Each document is BOS (if the tokenizer has one), its ids, EOS.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from weighted_mtp.core.cache import cache_root, kept
from weighted_mtp.core.config.text import TextConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.input_files import read_json
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.processes import available_cores
from weighted_mtp.data.datasets import file_digest
from weighted_mtp.data.tokens.corpus import Corpus, held_out
from weighted_mtp.data.tokens.document_ids import Ids, chunks, encode_all, id_type
from weighted_mtp.data.tokens.tokenizers import Tokenizer, spelled_ends

FORMAT = "weighted-mtp token stream v2"
_META = "stream.json"
_MUCH_TEXT = 64 << 20
_REPORT_SECONDS = 10.0
_log = get_logger(__name__)


class TokenStream:
    """One split, memory-mapped; pickles as its place on disk, so that any process may open it.

    Attributes:
        tokens: `[T]` ids of all documents, one after the other.
        offsets: `[documents + 1]` int64; document d is `tokens[offsets[d] : offsets[d + 1]]`.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        meta = read_json(folder / _META)
        self.tokens: Ids = np.memmap(folder / f"{split}.tokens", meta["dtype"], "r")
        self._digest: str | None = meta.get(split, {}).get("digest")
        self.offsets: np.ndarray[Any, np.dtype[np.int64]] = np.memmap(
            folder / f"{split}.offsets", np.int64, "r"
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens."""
        return self._digest or file_digest(self.folder / f"{self.split}.tokens")  # an older cache

    def __reduce__(self) -> tuple[type[TokenStream], tuple[Path, str]]:
        return TokenStream, (self.folder, self.split)


class TokenStreams(NamedTuple):
    """The two sides of a corpus, which share no document."""

    train: TokenStream
    validation: TokenStream | None


def open_text(
    text: TextConfig, tokenizer: Tokenizer, cache: Path | None = None, workers: int | None = None
) -> TokenStreams:
    """The streams of a recipe's `data.text`, tokenised now or taken from the cache.

    Args:
        cache, workers: see `token_streams`.

    Raises:
        UserError: as for `token_streams`.
    """

    def streams(source: Any, fraction: float) -> TokenStreams:
        corpus = Corpus(source, text.key, text.suffixes, text.separator)
        return token_streams(corpus, tokenizer, fraction, cache, workers)

    if text.validation_path is None:
        return streams(text.path, text.validation_fraction)
    return TokenStreams(streams(text.path, 0.0).train, streams(text.validation_path, 0.0).train)


def token_streams(
    corpus: Corpus,
    tokenizer: Tokenizer,
    validation_fraction: float = 0.0,
    cache: Path | None = None,
    workers: int | None = None,
) -> TokenStreams:
    """Tokenise a corpus, unless the cache has it. Of several processes one does, the others wait.

    Args:
        validation_fraction: share of the documents held out, see `held_out`; 0 holds out none.
        cache: see `cache_root`.
        workers: processes that tokenise; None takes one below 64 MB and one a core above. The
            result does not depend on it.

    Raises:
        UserError: the corpus cannot be read or has no usable document, a split stays without one,
            or the cache cannot be written.
    """
    content = corpus.fingerprint()
    ids = [tokenizer.fingerprint, tokenizer.bos_id, tokenizer.eos_id]
    depends = json.dumps([FORMAT, content, ids, validation_fraction])
    key = hashlib.sha256(depends.encode()).hexdigest()[:24]
    folder = cache_root(cache) / "text" / key

    def make(partial: Path) -> None:
        count = workers or _default_workers(corpus)
        _write(corpus, tokenizer, validation_fraction, count, partial)
        if corpus.fingerprint() != content:
            raise UserError(f"{corpus.source}: changed while it was tokenised; start again")

    meta = kept(folder, _read_meta, make, f"the tokens of {corpus.source}")
    _log.info(f"{corpus.source}: {_counts(meta)} ({folder})")
    if meta["spelled"]:
        _log.warning(
            f"{corpus.source}: {meta['spelled']:,} documents contain "
            f"{' or '.join(spelled_ends(tokenizer))} as text, and so it stays; where it separates "
            "documents, set data.text.separator to it"
        )
    _check_splits(corpus, meta, validation_fraction)
    return TokenStreams(
        TokenStream(folder, "train"),
        TokenStream(folder, "validation") if validation_fraction else None,
    )


def _counts(meta: dict[str, Any]) -> str:
    train, held = meta["train"], meta["validation"]
    return (
        f"{train['documents']:,} documents, {train['tokens']:,} tokens to train on; "
        f"{held['documents']:,} and {held['tokens']:,} held out"
    )


def _check_splits(corpus: Corpus, meta: dict[str, Any], fraction: float) -> None:
    sides = [meta[split]["documents"] for split in ("train", "validation")]
    if not sides[0] or (fraction and not sides[1]):
        raise UserError(
            f"{corpus.source}: of {sum(sides)} documents none is left for "
            f"{'validation' if sides[0] else 'training'} at data.text.validation_fraction "
            f"{fraction}; set data.text.validation_path, or a data.text.separator that cuts the "
            "text into more documents"
        )


def _default_workers(corpus: Corpus) -> int:
    return 1 if corpus.size() < _MUCH_TEXT else available_cores()


# --- on disk -------------------------------------------------------------------------------------


def _read_meta(folder: Path) -> dict[str, Any]:
    """What `stream.json` says, if the files are as long as it says."""
    meta: dict[str, Any] = read_json(folder / _META)
    for split in ("train", "validation"):
        tokens = meta[split]["tokens"] * np.dtype(meta["dtype"]).itemsize
        offsets = (meta[split]["documents"] + 1) * np.dtype(np.int64).itemsize
        for name, size in ((f"{split}.tokens", tokens), (f"{split}.offsets", offsets)):
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{name} has another size")
    return meta


class _Writer:
    """Appends documents to one split."""

    def __init__(self, folder: Path, split: str) -> None:
        self._tokens = (folder / f"{split}.tokens").open("wb")
        self._offsets = (folder / f"{split}.offsets").open("wb")
        self.documents, self.tokens = 0, 0
        self.sha256 = hashlib.sha256()
        self._offsets.write(np.int64(0).tobytes())

    def add(self, ids: Ids) -> None:
        content = ids.tobytes()
        self._tokens.write(content)
        self.sha256.update(content)
        self.documents, self.tokens = self.documents + 1, self.tokens + len(ids)
        self._offsets.write(np.int64(self.tokens).tobytes())

    def close(self) -> None:
        self._tokens.close()
        self._offsets.close()


def _write(
    corpus: Corpus, tokenizer: Tokenizer, fraction: float, workers: int, folder: Path
) -> None:
    """Read, split, tokenise and store all documents."""
    _log.info(f"{corpus.source}: tokenising, once (processes: {workers})")
    skipped: Counter[str] = Counter()
    ends, spelled = spelled_ends(tokenizer), 0
    writers = {split: _Writer(folder, split) for split in ("train", "validation")}
    said = time.monotonic()
    documents = chunks(corpus.documents(skipped))
    try:
        with closing(encode_all(tokenizer, documents, workers)) as parts:
            for chunk, encoded in parts:
                for text, ids in zip(chunk, encoded, strict=True):
                    spelled += any(end in text for end in ends)
                    writers["validation" if held_out(text, fraction) else "train"].add(ids)
                if time.monotonic() - said > _REPORT_SECONDS:
                    said = time.monotonic()
                    done = sum(writer.tokens for writer in writers.values())
                    _log.info(f"{corpus.source}: {done:,} tokens so far")
    finally:
        for writer in writers.values():
            writer.close()
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    if not any(writer.documents for writer in writers.values()):
        raise UserError(f"{corpus.source}: no usable document (left out: {reasons or 'none'})")
    if skipped:
        _log.warning(f"{corpus.source}: documents left out: {reasons}")
    meta = {
        "format": FORMAT,
        "source": str(corpus.source),
        "tokenizer": tokenizer.fingerprint,
        "dtype": id_type(tokenizer).name,
        "skipped": dict(skipped),
        "spelled": spelled,
        **{
            name: {
                "documents": writer.documents,
                "tokens": writer.tokens,
                "digest": writer.sha256.hexdigest(),
            }
            for name, writer in writers.items()
        },
    }
    (folder / _META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
