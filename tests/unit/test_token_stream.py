"""A corpus tokenised once: the stream on disk, the cache, interruptions."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from weighted_mtp.core.config.text import TextConfig
from weighted_mtp.core.errors import UserError
from weighted_mtp.data.tokens.corpus import STDLIB, Corpus, held_out
from weighted_mtp.data.tokens.text_tokens import TokenStream, open_text, token_streams
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer

BOS, EOS = ByteTokenizer.bos_id, ByteTokenizer.eos_id
DOCUMENTS = [f"document {i}: {'é' * (i % 5)}" for i in range(60)]


class Counting(ByteTokenizer):
    """Notes every text it encodes in a file, one letter each, from whatever process."""

    def __init__(self, log: Path, stop_after: int | None = None) -> None:
        self.log, self.stop_after = log, stop_after
        log.touch()

    @property
    def count(self) -> int:
        return self.log.stat().st_size

    def encode(self, text: str) -> list[int]:
        if self.count == self.stop_after:
            raise KeyboardInterrupt
        with self.log.open("a") as file:
            file.write("x")
        return super().encode(text)


class Wide(ByteTokenizer):
    """As many ids as Llama 3 has."""

    vocab_size = 128_256
    bos_id = None
    eos_id = 128_001
    fingerprint = "wide"


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS)
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    return Corpus(tmp_path / "rows.jsonl")


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def texts_of(stream: TokenStream) -> list[str]:
    """The documents, after a look at their borders."""
    found = []
    for a, b in zip(stream.offsets, stream.offsets[1:], strict=False):
        ids = stream.tokens[a:b].tolist()
        assert ids[0] == BOS
        assert ids[-1] == EOS
        found.append(bytes(ids[1:-1]).decode())
    return found


# --- what is stored ------------------------------------------------------------------------------


def test_every_document_is_on_one_side_in_order(corpus, cache):
    train, validation = token_streams(corpus, ByteTokenizer(), 0.3, cache)
    assert texts_of(train) == [x for x in DOCUMENTS if not held_out(x, 0.3)]
    assert texts_of(validation) == [x for x in DOCUMENTS if held_out(x, 0.3)]
    assert len(train) == train.offsets[-1] == len(train.tokens)
    assert train.documents + validation.documents == len(DOCUMENTS)
    assert train.tokens.dtype == np.uint16


def test_equal_documents_are_on_one_side(tmp_path, cache):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"text {i % 10}")
    train, validation = token_streams(Corpus(tmp_path), ByteTokenizer(), 0.4, cache)
    assert not set(texts_of(train)) & set(texts_of(validation))
    assert train.documents + validation.documents == 40


def test_many_ids_take_four_bytes_and_no_bos_none(corpus, cache):
    stream = token_streams(corpus, Wide(), cache=cache).train
    assert stream.tokens.dtype == np.uint32
    assert stream.tokens[: stream.offsets[1]].tolist() == [*DOCUMENTS[0].encode(), Wide.eos_id]


def test_a_stream_is_pickled_as_its_place(corpus, cache):
    stream = token_streams(corpus, ByteTokenizer(), cache=cache).train
    parcel = pickle.dumps(stream)
    assert len(parcel) < 1000
    assert texts_of(pickle.loads(parcel)) == DOCUMENTS  # noqa: S301  # our own bytes


def test_processes_change_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("weighted_mtp.data.tokens.document_ids._CHUNK_CHARACTERS", 50)
    one = token_streams(corpus, ByteTokenizer(), 0.3, tmp_path / "one", workers=1)
    two = token_streams(corpus, ByteTokenizer(), 0.3, tmp_path / "two", workers=2)
    for a, b in zip(one, two, strict=True):
        assert a.tokens.tobytes() == b.tokens.tobytes()
        assert a.offsets.tobytes() == b.offsets.tobytes()


def test_some_of_the_standard_library(tmp_path, cache):
    """Real files, byte for byte."""
    files = [x for x in Corpus(STDLIB).files() if x.parent.name in ("json", "email")]
    for i, path in enumerate(files):
        shutil.copyfile(path, tmp_path / f"{i:03d}.py")
    stream = token_streams(Corpus(tmp_path), ByteTokenizer(), cache=cache).train
    contents = [path.read_bytes().decode() for path in files]
    assert len(contents) > 10
    assert texts_of(stream) == [text for text in contents if text]


# --- the cache -----------------------------------------------------------------------------------


def test_the_second_time_nothing_is_tokenised(corpus, cache, tmp_path):
    tokenizer = Counting(tmp_path / "log")
    first = token_streams(corpus, tokenizer, 0.3, cache)
    assert tokenizer.count == len(DOCUMENTS)
    again = token_streams(corpus, tokenizer, 0.3, cache)
    assert tokenizer.count == len(DOCUMENTS)
    assert texts_of(again.train) == texts_of(first.train)


def test_other_settings_are_tokenised_anew(corpus, cache):
    folders = {
        token_streams(Corpus(corpus.source, separator="-"), ByteTokenizer(), 0.0, cache),
        token_streams(corpus, ByteTokenizer(), 0.0, cache),
        token_streams(corpus, ByteTokenizer(), 0.3, cache),
        token_streams(corpus, Wide(), 0.0, cache),
    }
    assert len({streams.train.folder for streams in folders}) == 4


def test_a_changed_corpus_is_tokenised_anew(corpus, cache):
    token_streams(corpus, ByteTokenizer(), cache=cache)
    Path(corpus.source).write_text('{"text": "new"}\n')
    assert texts_of(token_streams(corpus, ByteTokenizer(), cache=cache).train) == ["new"]


@pytest.mark.parametrize("name", ["train.tokens", "train.offsets", "stream.json"])
def test_damage_is_seen_and_mended(corpus, cache, name):
    folder = token_streams(corpus, ByteTokenizer(), cache=cache).train.folder
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-5])
    assert texts_of(token_streams(corpus, ByteTokenizer(), cache=cache).train) == DOCUMENTS


def test_an_interruption_leaves_nothing(corpus, cache, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        token_streams(corpus, Counting(tmp_path / "log", stop_after=7), cache=cache)
    assert [path for path in (cache / "text").iterdir() if path.suffix != ".lock"] == []


def test_what_a_killed_process_left_is_not_trusted(corpus, cache):
    folder = token_streams(corpus, ByteTokenizer(), cache=cache).train.folder
    partial = folder.with_name(folder.name + ".partial")
    folder.rename(partial)
    (partial / "train.tokens").write_bytes(b"half")
    assert texts_of(token_streams(corpus, ByteTokenizer(), cache=cache).train) == DOCUMENTS
    assert not partial.exists()


# --- mistakes ------------------------------------------------------------------------------------


def test_nothing_usable_is_one_error(tmp_path, cache):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"no usable document .left out: 1 empty, 1 not UTF-8"):
        token_streams(Corpus(tmp_path), ByteTokenizer(), cache=cache)


def test_one_document_cannot_be_split(tmp_path, cache):
    path = tmp_path / "a.txt"
    path.write_text("all there is")
    with pytest.raises(UserError, match=r"of 1 documents none is left for validation at"):
        token_streams(Corpus(path), ByteTokenizer(), 0.1, cache)
    assert token_streams(Corpus(path), ByteTokenizer(), 0.0, cache).validation is None


def test_a_corpus_that_changes_meanwhile_is_refused(tmp_path, cache):
    path = tmp_path / "a.txt"
    path.write_text("before")

    class Meddling(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            path.write_text("after")
            return super().encode(text)

    with pytest.raises(UserError, match="changed while it was tokenised"):
        token_streams(Corpus(path), Meddling(), cache=cache)
    assert texts_of(token_streams(Corpus(path), ByteTokenizer(), cache=cache).train) == ["after"]


def test_a_cache_that_cannot_be_written_is_named(corpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        UserError, match=r"set data.cache_dir .*WEIGHTED_MTP_CACHE.* another folder"
    ):
        token_streams(corpus, ByteTokenizer(), cache=tmp_path / "file")


def test_a_recipe_may_name_the_validation_text(corpus, cache, tmp_path):
    (tmp_path / "held.txt").write_text("held out")
    section = TextConfig(path=corpus.source, validation_path=tmp_path / "held.txt")
    train, validation = open_text(section, ByteTokenizer(), cache)
    assert texts_of(train) == DOCUMENTS
    assert texts_of(validation) == ["held out"]
    section = TextConfig(path=corpus.source, validation_fraction=0.3)
    assert open_text(section, ByteTokenizer(), cache).validation.documents > 0
