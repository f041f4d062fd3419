"""Three kinds of tokenizer behind one interface: round trips, files, and mistakes."""

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.tokenizers import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    check_vocabulary,
    load_tokenizer,
    make_tokenizer,
)

CODE = "def f(xs):\n    if xs:\n        return xs[0]\n\n\n\tfor x in xs:  # two  spaces\n\t\tpass\n"
TEXTS = [CODE, "    indented", " x", "\n\n", "", "a  b  ", "é漢😀", "\r\nend\t", "x . y , do n't"]


def write_huggingface(folder: Path, eos: str | None = "</s>", bos: str | None = None) -> Path:
    """A byte-level BPE tokenizer folder as `transformers` writes it, trained on a few lines."""
    backend = BackendTokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([CODE, "return a + b\n"], trainer)
    if bos is not None:  # as Llama 3's file says: prefix every text
        special = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=special
        )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    named = {"eos_token": eos, "bos_token": bos}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **{k: v for k, v in named.items() if v}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def huggingface_folder(tmp_path_factory) -> Path:
    return write_huggingface(tmp_path_factory.mktemp("huggingface"))


@pytest.fixture(scope="module")
def sentencepiece_model() -> Path:
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or spec.origin is None:
        pytest.skip("mistral_common, whose SentencePiece model this reads, is not installed")
    path = Path(spec.origin).parent / "data" / "tokenizer.model.v1"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


# --- bytes ---------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_byte_tokenizer(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert all(0 <= i < 256 for i in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id, tokenizer.pad_id]) == text


def test_the_byte_tokenizer_has_three_specials_above_the_bytes():
    tokenizer = ByteTokenizer()
    assert sorted([tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id]) == [256, 257, 258]
    assert tokenizer.vocab_size == 259
    assert tokenizer.encode("aé") == [97, 0xC3, 0xA9]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, 300)))
def test_bytes_cut_anywhere_decode_to_something(ids):
    """A model may stop inside a character, or predict ids that only pad its vocabulary."""
    assert isinstance(ByteTokenizer().decode(ids), str)


# --- SentencePiece -------------------------------------------------------------------------------


def test_sentencepiece_reads_llamas_vocabulary(sentencepiece_model):
    tokenizer = make_tokenizer("sentencepiece", sentencepiece_model)
    assert tokenizer.vocab_size == 32000
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert 0 <= tokenizer.pad_id < tokenizer.vocab_size


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_keeps_indentation_and_newlines(sentencepiece_model, text):
    tokenizer = SentencePieceTokenizer(sentencepiece_model)
    ids = tokenizer.encode(text)
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text


def test_a_sentencepiece_text_that_spells_eos_is_not_eos(sentencepiece_model):
    tokenizer = SentencePieceTokenizer(sentencepiece_model)
    assert tokenizer.eos_id not in tokenizer.encode("a</s>b")


# --- Hugging Face --------------------------------------------------------------------------------


def test_a_local_fast_tokenizer_loads_offline(huggingface_folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    tokenizer = make_tokenizer("huggingface", huggingface_folder)
    assert tokenizer.vocab_size > 256
    assert tokenizer.eos_id == 1
    assert tokenizer.bos_id is None
    assert tokenizer.pad_id == tokenizer.eos_id
    assert make_tokenizer("huggingface", huggingface_folder / "tokenizer.json").eos_id == 1


@pytest.mark.parametrize("text", TEXTS)
def test_a_fast_tokenizer_keeps_indentation_and_newlines(huggingface_folder, text):
    tokenizer = HuggingFaceTokenizer(huggingface_folder)
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_id]) == text


def test_a_fast_tokenizer_adds_no_specials_of_its_own(tmp_path):
    tokenizer = HuggingFaceTokenizer(write_huggingface(tmp_path, bos="<s>"))
    assert tokenizer.bos_id == 0
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(tokenizer.encode(CODE))
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode(CODE), tokenizer.eos_id]) == CODE


# --- saving and loading --------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["tokenizer", "."])
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "huggingface"])
def test_a_saved_tokenizer_is_found_again(kind, inside, tmp_path, request):
    fixtures = {"sentencepiece": "sentencepiece_model", "huggingface": "huggingface_folder"}
    path = request.getfixturevalue(fixtures[kind]) if kind in fixtures else None
    tokenizer = make_tokenizer(kind, path)
    tokenizer.save(tmp_path / inside)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer)
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id"):
        assert getattr(loaded, name) == getattr(tokenizer, name), name
    for text in TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.fingerprint == tokenizer.fingerprint


def test_fingerprints_of_different_tokenizers_differ(huggingface_folder, tmp_path):
    other = BackendTokenizer.from_file(str(write_huggingface(tmp_path) / "tokenizer.json"))
    other.add_tokens(["lambda"])
    other.save(str(tmp_path / "tokenizer.json"))
    prints = {HuggingFaceTokenizer(f).fingerprint for f in (huggingface_folder, tmp_path)}
    assert len(prints | {ByteTokenizer().fingerprint}) == 3


def test_the_tokenizer_folder_wins_over_files_beside_the_weights(huggingface_folder, tmp_path):
    HuggingFaceTokenizer(huggingface_folder).save(tmp_path)
    ByteTokenizer().save(tmp_path / "tokenizer")
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface"])
def test_a_missing_path_is_named(kind, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.path .*nowhere"):
        make_tokenizer(kind, tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"tokenizer\.path .*{kind}"):
        make_tokenizer(kind)


@pytest.mark.parametrize("with_path", [True, False])
def test_an_unknown_kind_lists_the_known_ones(with_path, tmp_path):
    with pytest.raises(UserError, match=r"wordpiece.*bytes, micro, sentencepiece, huggingface"):
        make_tokenizer("wordpiece", tmp_path if with_path else None)


def test_the_shipped_tokenizer_keeps_every_text():
    tokenizer = make_tokenizer("micro")
    assert tokenizer.vocab_size == 1024
    for text in (
        "def f(x):\n    return x * 127 - 60\n",
        "  zwölf 蛙 \t\r\n",
        "\x00\x7f",
        "007 1000000",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("12345 7")]
    assert pieces == ["12", "34", "5", " ", "7"]


def test_no_tokenizer_beside_the_weights(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe\x00\x01" * 9])
def test_a_damaged_sentencepiece_model_is_named(content, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    for load in (lambda: load_tokenizer(tmp_path), lambda: make_tokenizer("sentencepiece", path)):
        with pytest.raises(UserError, match="not a SentencePiece model") as caught:
            load()
        assert str(path) in str(caught.value)


def test_a_folder_is_no_sentencepiece_model(tmp_path):
    with pytest.raises(UserError, match="not a SentencePiece model"):
        make_tokenizer("sentencepiece", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"{}",
        b"\xff\xfe\x00",
        b'{"added_tokens": [], "model": {"type": "Unheard-of"}}',
        b'{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["q q"]}}',
    ],
)
def test_a_damaged_fast_tokenizer_is_named(content, tmp_path):
    write_huggingface(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="not a Hugging Face tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_without_tokenizer_files_is_named(tmp_path):
    with pytest.raises(UserError, match=r"needs tokenizer\.json") as caught:
        make_tokenizer("huggingface", tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    write_huggingface(tmp_path, eos=None)
    with pytest.raises(UserError, match="eos_token") as caught:
        make_tokenizer("huggingface", tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_vocabulary_larger_than_the_models_is_refused():
    check_vocabulary(ByteTokenizer(), 259, "model/")
    check_vocabulary(ByteTokenizer(), 32000, "model/")
    with pytest.raises(UserError, match=r"^model/: .*259 tokens.*258"):
        check_vocabulary(ByteTokenizer(), 258, "model/")
