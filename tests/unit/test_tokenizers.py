"""Three kinds of tokenizer behind one interface: round trips, files, and mistakes."""

import hashlib
import io
import json
import pickle
import threading
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.tokens.tokenizers import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    check_vocabulary,
    load_tokenizer,
    make_tokenizer,
)

CODE = "def f(xs):\n    if xs:\n        return xs[0]\n\n\n\tfor x in xs:  # two  spaces\n\t\tpass\n"
TEXTS = [CODE, "    indented", " x", "\n\n", "", "a  b  ", "é漢😀", "\r\nend\t", "x . y , do n't"]


def write_huggingface(
    folder: Path, eos: str | None = "</s>", bos: str | None = None, prefixed: bool = True
) -> Path:
    """A byte-level BPE tokenizer folder as `transformers` writes it, trained on a few lines.

    With `bos` it begins every text with it, or, not `prefixed`, only names it.
    """
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
    if bos is not None and prefixed:  # as Llama 3's file says: prefix every text
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


def write_llama_like(folder: Path, scheme: str) -> Path:
    """A BPE tokenizer with byte fallback that puts "▁" before every text, in either of two ways."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁defxrtun()"]
    merges = [
        ("▁", "▁"),
        ("d", "e"),
        ("de", "f"),
        ("▁", "def"),
        ("▁▁", "▁▁"),
        ("▁", "x"),
        (")", ")"),
    ]
    vocabulary += [a + b for a, b in merges]
    backend = BackendTokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(vocabulary)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if scheme == "prepend":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def huggingface_folder(tmp_path_factory) -> Path:
    return write_huggingface(tmp_path_factory.mktemp("huggingface"))


KINDS = ["bytes", "micro", "byte-level", "prepend", "metaspace", "sentencepiece"]


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory, huggingface_folder, request):
    """Tokenizers by kind, each loaded once."""

    @cache
    def made(kind: str) -> Tokenizer:
        if kind in ("prepend", "metaspace"):
            return HuggingFaceTokenizer(write_llama_like(tmp_path_factory.mktemp(kind), kind))
        if kind == "byte-level":
            return HuggingFaceTokenizer(huggingface_folder)
        model = kind == "sentencepiece" and request.getfixturevalue("sentencepiece_model")
        return make_tokenizer(kind, model or None)

    return made


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


def test_a_bos_that_no_text_begins_with_is_none(tmp_path):
    """SmolLM2 names `<|im_start|>` as its BOS, and was never trained with one before a text."""
    named = write_huggingface(tmp_path / "named", bos="<s>", prefixed=False)
    prefixed = write_huggingface(tmp_path / "prefixed", bos="<s>")
    without = write_huggingface(tmp_path / "without")
    assert HuggingFaceTokenizer(named).bos_id is None
    assert HuggingFaceTokenizer(prefixed).bos_id == 0
    assert HuggingFaceTokenizer(without).bos_id is None
    prints = [HuggingFaceTokenizer(f).fingerprint for f in (named, prefixed, without)]
    assert prints[0] == prints[2] != prints[1]  # equal for those that give the same ids
    for folder, bos in ((named, []), (prefixed, [0])):
        loaded = HuggingFaceTokenizer(folder)
        prompt = AlpacaCollator(loaded, "short").encode_prompt("a")
        assert prompt == bos + loaded.encode("a\n>>>\n")
        loaded.save(tmp_path / "saved")
        assert load_tokenizer(tmp_path / "saved").bos_id == loaded.bos_id
        assert load_tokenizer(tmp_path / "saved").fingerprint == loaded.fingerprint


def test_a_fingerprint_made_while_the_config_was_believed_is_no_longer_taken(tmp_path):
    """Rows tokenised with a BOS that no longer comes must not be used again."""
    folder = write_huggingface(tmp_path, bos="<s>", prefixed=False)
    backend = BackendTokenizer.from_file(str(folder / "tokenizer.json"))
    state = json.dumps([json.loads(backend.to_str()), 0, 1], sort_keys=True)
    before = "huggingface-" + hashlib.sha256(state.encode()).hexdigest()[:16]
    assert HuggingFaceTokenizer(folder).fingerprint != before


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_pickles(kind, tokenizer_of):
    tokenizer = tokenizer_of(kind)
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301  # our own bytes
    assert copy.fingerprint == tokenizer.fingerprint
    for text in TEXTS:
        assert copy.encode_with_ends(text) == tokenizer.encode_with_ends(text)
        assert copy.encode_continuation(text) == tokenizer.encode_continuation(text)
        assert copy.decode(copy.encode(text)) == tokenizer.decode(tokenizer.encode(text))


# --- the border between a prompt and what follows ------------------------------------------------

WORDS = [
    "    ",
    " ",
    "\n",
    "\r\n",
    "\t",
    "def f(",
    "return x",
    "x",
    "é",
    "漢",
    "😀",
    "e\u0301",
    "</",
]
CHARACTERS = st.characters(
    exclude_categories=["Cs"], exclude_characters="▁"
)  # SentencePiece's space
ANY_CODE = st.lists(st.sampled_from(WORDS) | CHARACTERS, max_size=12).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=ANY_CODE)
def test_ends_say_how_much_of_the_text_is_in_the_tokens(kind, tokenizer_of, text):
    tokenizer, text = tokenizer_of(kind), "x" + text
    ids, ends = tokenizer.encode_with_ends(text)
    assert ids == tokenizer.encode(text)
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    for n in {0, 1, len(text) // 2, *ends}:
        inside = sum(end <= n for end in ends)
        covered = ends[inside - 1] if inside else 0
        assert tokenizer.decode(ids[:inside]) == text[:covered]
    assert ends[-1] == len(text)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(prompt=ANY_CODE, response=ANY_CODE)
def test_a_continuation_is_the_text_and_nothing_before_it(kind, tokenizer_of, prompt, response):
    tokenizer, prompt = tokenizer_of(kind), f"# {prompt}\n"
    ids = tokenizer.encode(prompt) + tokenizer.encode_continuation(response)
    assert tokenizer.decode(ids) == prompt + response


@pytest.mark.parametrize("kind", ["bytes", "micro", "byte-level"])
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_go_on_as_they_begin(kind, tokenizer_of, text):
    tokenizer = tokenizer_of(kind)
    assert tokenizer.encode_continuation(text) == tokenizer.encode(text)


def pieces(tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer._model.id_to_piece(i) for i in ids]


def test_llamas_dummy_prefix_is_not_there_in_a_continuation(sentencepiece_model):
    tokenizer = SentencePieceTokenizer(sentencepiece_model)
    assert pieces(tokenizer, tokenizer.encode("def f")) == ["▁def", "▁f"]
    assert pieces(tokenizer, tokenizer.encode_continuation("def f")) == ["def", "▁f"]
    assert pieces(tokenizer, tokenizer.encode_continuation("    x")) == ["▁▁▁", "▁x"]
    assert tokenizer.encode_continuation("") == []
    after_newline = tokenizer.encode("x\n" + CODE)[2:]  # "▁x", "\n": which merges with nothing
    assert tokenizer.encode_continuation(CODE) == after_newline


def test_sentencepiece_ends_where_tokens_cover_no_character(sentencepiece_model):
    tokenizer = SentencePieceTokenizer(sentencepiece_model)

    def tokens(text: str) -> list[tuple[str, int]]:
        ids, ends = tokenizer.encode_with_ends(text)
        return list(zip(pieces(tokenizer, ids), ends, strict=True))

    assert tokens(" x") == [("▁", 1), ("▁x", 2)]  # the dummy prefix goes with the space
    parts = [("<0xE6>", 2), ("<0xBC>", 2), ("<0xA2>", 2)]  # a byte with its character
    assert tokens("a漢b") == [("▁a", 1), *parts, ("b", 3)]
    assert tokens("") == []


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_model_that_normalises_and_knows_few_characters(model_type, tmp_path):
    """NFKC, spaces joined, no byte fallback: as SentencePiece trains by default."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CODE.split("\n") * 20),
        model_writer=written,
        model_type=model_type,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    tokenizer = load_tokenizer(tmp_path)
    for text in [*TEXTS, "漢x", "½ﬁx", "ｘ  ｓ", "\ue000"]:
        ids, ends = tokenizer.encode_with_ends(text)
        assert ids == tokenizer.encode(text)
        assert ends == sorted(ends)
        assert all(0 < end <= len(text) for end in ends)
    _, ends = tokenizer.encode_with_ends("½x")  # normalised to 1⁄2x
    assert ends[-2:] == [1, 2]
    start = tokenizer.encode("x\n")
    for text in ["def f(xs):", "x", "xs[0]"]:
        assert tokenizer.decode(start + tokenizer.encode_continuation(text)) == "x" + text
    for text in ["漢x", "\ue000"]:  # not to be told from the character put before it
        assert tokenizer.encode_continuation(text) == tokenizer.encode(text)


def test_offsets_that_a_post_processor_trims_are_whole(tmp_path):
    """GPT-2 and Llama 3 leave spaces out of their offsets."""
    write_huggingface(tmp_path)
    backend = BackendTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids, ends = tokenizer.encode_with_ends("a\n    b")
    assert ids == tokenizer.encode("a\n    b")
    assert [tokenizer.decode([i]) for i in ids] == [" a", "\n   ", " b"]
    assert ends == [1, 5, 7]
    assert tokenizer.decode(tokenizer.encode("x")) == " x"
    assert tokenizer.decode(tokenizer.encode_continuation("x")) == "x"


def test_encoding_starts_no_thread_and_forgets_the_files_truncation(huggingface_folder, tmp_path):
    """A forked worker would wait for threads that it has not got."""
    backend = BackendTokenizer.from_file(str(huggingface_folder / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=9, pad_id=1, pad_token="</s>")
    HuggingFaceTokenizer(huggingface_folder).save(tmp_path)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer, plain = load_tokenizer(tmp_path), HuggingFaceTokenizer(huggingface_folder)
    before = threads()
    assert tokenizer.encode(CODE) == plain.encode(CODE)
    assert tokenizer.encode_with_ends(CODE) == plain.encode_with_ends(CODE)
    assert threads() == before
    assert tokenizer.fingerprint == plain.fingerprint


def threads() -> int:
    """Of this process, the library's own included where the system tells."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()


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
    assert tokenizer.bos_id == 0
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
    with pytest.raises(UserError, match="it is a directory"):
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
