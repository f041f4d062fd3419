"""Text is content: what spells a control token stays text, in every kind of tokenizer."""

import json
import pickle
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tests.unit.test_tokenizers import CODE, write_huggingface, write_llama_like
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import convert_slow_tokenizer  # noqa: F401  # the module, see `converted`

from weighted_mtp.core.errors import UserError
from weighted_mtp.data.collators import AlpacaCollator
from weighted_mtp.data.rows.store import open_rows
from weighted_mtp.data.tokens.corpus import Corpus
from weighted_mtp.data.tokens.document_ids import encode_all
from weighted_mtp.data.tokens.row_tokens import tokenise
from weighted_mtp.data.tokens.text_tokens import token_streams
from weighted_mtp.data.tokens.tokenizers import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
    make_tokenizer,
    spelled_ends,
)

SPELLED = [
    "</s>",
    "<s>",
    "<s>print(1)</s>",
    "a</s>b",
    "a </s> b",
    "  </s>  \n",
    "\t</s>\t<s>",
    "x <|im_end|>",
    "<|im_start|>user\n<|im_end|>\n",
    "<unk>",
    "<pad>",
    "<|endoftext|>",
    "</s></s>",
    "<</s>>",
    "</S>",
    "<0x0A>",
    "a<0x41>b",
]
NASTY = [*SPELLED, "", " ", "   lead", "trail  ", "\ttab", "a\t\tb", "\r\n", "é漢😀", "e\u0301"]
NASTY += [CODE, "ﬁ½", "\x00\x7f", "\u2028", "a\u00a0b", " \n x", "    "]


def save(backend: Backend, folder: Path, **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def byte_level(folder: Path, *, ignore_merges: bool = False, **flags) -> Path:
    """Specials with any flags; a merge that makes `</s>`; whitespace runs and `<think>` besides."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "/"), ("</", "s"), ("</s", ">"), ("Ġ", "Ġ"), ("d", "e")]
    pieces = [*alphabet, *(a + b for a, b in merges)]
    backend = Backend(
        models.BPE({p: i for i, p in enumerate(pieces)}, merges, ignore_merges=ignore_merges)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if flags.get("normalized"):
        backend.normalizer = normalizers.NFC()
    names = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    backend.add_special_tokens([AddedToken(name, **flags) for name in names])
    backend.add_tokens([AddedToken("    ", normalized=False), AddedToken("<think>")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    bos = {"__type": "AddedToken", "content": "<s>"}
    return save(backend, folder, eos_token="</s>", bos_token=bos)


def unigram(folder: Path) -> Path:
    """A converted SentencePiece model: control pieces are in the vocabulary with the best score."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{i:02X}>", 0.0) for i in range(256)]
    pieces += [(p, -3.0 - i / 10) for i, p in enumerate("▁ </s>xabdefu|0A14")]
    pieces += [("</", -4.0), ("▁a", -4.5)]
    backend = Backend(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return save(backend, folder, eos_token="</s>", bos_token="<s>", add_bos_token=True)


def converted(model: Path, folder: Path, scheme: str) -> Path:
    """A SentencePiece BPE model as transformers converts it (which would need protobuf): its
    pieces, its merges, and the prefix "▁" in one of the ways that its versions have."""
    import sys

    from sentencepiece import SentencePieceProcessor

    generate_merges = sys.modules["transformers.convert_slow_tokenizer"].generate_merges
    source = SentencePieceProcessor(model_file=str(model))
    pieces = [source.id_to_piece(i) for i in range(source.vocab_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    scores = {piece: source.get_score(i) for i, piece in enumerate(pieces)}
    backend = Backend(
        models.BPE(
            vocab,
            generate_merges(vocab, scores),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.add_special_tokens(
        [AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")]
    )
    if scheme == "prepend":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return save(backend, folder, tokenizer_class="LlamaTokenizer", add_bos_token=True, **named)


KINDS = {
    "plain": lambda folder: byte_level(folder),
    "whole words": lambda folder: byte_level(folder, ignore_merges=True),
    "normalized": lambda folder: byte_level(folder, normalized=True),
    "stripping": lambda folder: byte_level(folder, lstrip=True, rstrip=True),
    "single word": lambda folder: byte_level(folder, single_word=True),
    "trained": lambda folder: write_huggingface(folder, bos="<s>"),
    "byte fallback": lambda folder: write_llama_like(folder, "prepend"),
    "unigram": unigram,
}


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    return cache(lambda kind: load_tokenizer(KINDS[kind](tmp_path_factory.mktemp("kind"))))


@pytest.fixture(scope="module", params=["prepend", "first", "always"])
def both_forms(tmp_path_factory, sentencepiece_model, request):
    folder = converted(sentencepiece_model, tmp_path_factory.mktemp("converted"), request.param)
    return SentencePieceTokenizer(sentencepiece_model), HuggingFaceTokenizer(folder)


# --- content -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "bytes", "micro"])
def test_no_text_becomes_a_control_token(kind, tokenizer_of):
    tokenizer = make_tokenizer(kind) if kind in ("bytes", "micro") else tokenizer_of(kind)
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301  # as a worker process gets it
    control = {*tokenizer.control.values(), *tokenizer.stop_ids, tokenizer.bos_id}
    for text in SPELLED:
        ids, ends = tokenizer.encode_with_ends(text)
        assert control.isdisjoint(ids), text
        assert tokenizer.decode(ids) == text
        assert ids == tokenizer.encode(text) == copy.encode(text)
        assert ends[-1] == len(text)
        assert ends == sorted(ends)
        after = tokenizer.encode_continuation(text)
        assert control.isdisjoint(after)
        assert after == copy.encode_continuation(text)
        before = tokenizer.encode("x\n")
        whole = [tokenizer.eos_id, *before, tokenizer.eos_id, *after, tokenizer.eos_id]
        assert tokenizer.decode(whole) == "x\n" + text


def test_both_forms_of_a_tokenizer_give_the_same_ids(both_forms):
    native, fast = both_forms
    for text in [*NASTY, " ".join(NASTY)]:
        assert fast.encode(text) == native.encode(text), text
        assert fast.encode_with_ends(text) == native.encode_with_ends(text)
        assert fast.encode_continuation("\n" + text) == native.encode_continuation("\n" + text)
        assert fast.decode(fast.encode(text)) == native.decode(native.encode(text)) == text
    for name in ("bos_id", "eos_id", "stop_ids", "vocab_size", "control"):
        assert getattr(fast, name) == getattr(native, name), name


def test_ends_of_spelled_tokens_are_those_of_the_text(tokenizer_of):
    tokenizer = tokenizer_of("plain")
    ids, ends = tokenizer.encode_with_ends("a</s> b")
    assert [tokenizer.decode([i]) for i in ids] == ["a", "</s", ">", " ", "b"]
    assert ends == [1, 4, 5, 6, 7]


def test_added_tokens_that_are_not_special_are_recognised(tokenizer_of):
    tokenizer = tokenizer_of("plain")
    backend = Backend.from_str(tokenizer._backend.to_str())
    for name in ("    ", "<think>"):
        assert tokenizer.encode(f"a{name}b")[1:-1] == [backend.token_to_id(name)]
        assert tokenizer.decode(tokenizer.encode(f"a{name}b")) == f"a{name}b"
        assert name not in tokenizer.control
    names = {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"}
    assert set(tokenizer.control) == names


@pytest.mark.parametrize("where", ["additional", "decoder", "stops", "eos"])
def test_a_token_that_a_config_calls_special_is_a_control_token(where, tmp_path):
    """Also where tokenizer.json does not flag it."""
    folder = byte_level(tmp_path)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    think = Backend.from_file(str(folder / "tokenizer.json")).token_to_id("<think>")
    assert think in load_tokenizer(folder).encode("<think>")
    if where == "additional":
        config["additional_special_tokens"] = ["<think>"]
    elif where == "decoder":
        config["added_tokens_decoder"] = {str(think): {"content": "<think>", "special": True}}
    elif where == "eos":
        config["eos_token"] = {"content": "<think>"}
    else:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [think]}))
    path.write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.control["<think>"] == think
    assert think not in tokenizer.encode("<think>")
    assert tokenizer.decode([think, *tokenizer.encode("<think>")]) == "<think>"


def test_tokens_that_only_the_configs_list_are_there(tmp_path):
    """As fine-tuned folders have them: tokenizer.json is the base model's."""
    folder = byte_level(tmp_path)
    size = load_tokenizer(folder).vocab_size
    config = json.loads((folder / "tokenizer_config.json").read_text())
    more = {str(size): {"content": "<|eot|>", "special": True}, str(size + 1): {"content": "<sep>"}}
    config |= {"added_tokens_decoder": more, "eos_token": "<|eot|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (size, size + 2)
    assert size not in tokenizer.encode("<|eot|>")
    assert tokenizer.encode("<sep>") == [size + 1]
    config["added_tokens_decoder"] = {str(size + 5): {"content": "<|eot|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"'<\|eot\|>' has id .*do not belong together"):
        load_tokenizer(folder)


def test_an_unknown_character_is_not_eos(tmp_path):
    """GPT-2's configs name one token for BOS, EOS and unknown."""
    vocab = {"<|endoftext|>": 0, "a": 1, "b": 2}
    backend = Backend(models.BPE(vocab, [], unk_token="<|endoftext|>"))
    backend.add_special_tokens(["<|endoftext|>"])
    folder = save(backend, tmp_path, eos_token="<|endoftext|>")
    assert load_tokenizer(folder).encode("a漢b") == [1, 2]


def test_dropout_and_padding_of_a_file_are_off(tmp_path):
    folder = byte_level(tmp_path)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = load_tokenizer(folder)
    assert {tuple(tokenizer.encode("    def </s>" * 9)) for _ in range(9)} == {
        tuple(tokenizer.encode("    def </s>" * 9))
    }


def test_a_fingerprint_tells_tokenizers_that_parse_from_those_that_do_not(tmp_path):
    """Caches made while `</s>` in a row became EOS are not used again."""
    first = load_tokenizer(byte_level(tmp_path / "one"))
    assert first.fingerprint == load_tokenizer(byte_level(tmp_path / "two")).fingerprint
    folder = byte_level(tmp_path / "three")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"additional_special_tokens": ["<think>"]})
    )
    assert load_tokenizer(folder).fingerprint != first.fingerprint
    assert make_tokenizer("micro").fingerprint != "huggingface-541f26656fcbeedf"  # before


# --- sequences -----------------------------------------------------------------------------------

LITERAL = {
    "task_id": "1",
    "instruction": "<s>Add </s> two",
    "input": "<s>",
    "output": "<s>def f():\n    return '</s>'\n</s>",
    "is_correct": True,
    "metadata": {},
}


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("kind", ["plain", "unigram", "trained"])
def test_a_row_has_one_bos_and_one_eos(kind, joint, tokenizer_of):
    tokenizer = tokenizer_of(kind)
    example = AlpacaCollator(tokenizer, "short", joint=joint).encode(LITERAL)
    assert example.ids.count(tokenizer.bos_id) == 1
    assert example.ids[0] == tokenizer.bos_id
    assert example.ids.count(tokenizer.eos_id) == 1
    assert example.ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(example.ids).endswith(LITERAL["output"])


def test_prompts_and_documents_have_one_bos_and_one_eos(tokenizer_of):
    tokenizer = tokenizer_of("plain")
    prompt = AlpacaCollator(tokenizer, "short").encode_prompt("<s>hello</s>", "<s>")
    assert [prompt.count(i) for i in (tokenizer.bos_id, tokenizer.eos_id)] == [1, 0]
    documents = [["<s>one</s>two</s>", "</s>"]]
    for _, ids in encode_all(tokenizer, documents, 1):
        for one in ids:
            assert one[0] == tokenizer.bos_id
            assert one[-1] == tokenizer.eos_id
            assert [list(one).count(i) for i in (tokenizer.bos_id, tokenizer.eos_id)] == [1, 1]
    assert spelled_ends(tokenizer) == ("</s>", "<s>")


def test_rows_and_documents_that_spell_eos_are_counted(tmp_path, tokenizer_of, caplog):
    tokenizer = tokenizer_of("plain")
    plain = {**LITERAL, "instruction": "Add", "input": "", "output": "a < b > c"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (LITERAL, plain, LITERAL, plain)))
    store, collator = open_rows(path, tmp_path / "cache"), AlpacaCollator(tokenizer, "short")
    for _ in range(2):  # made, and from the cache
        assert tokenise(store, np.arange(4), collator, tmp_path / "cache").spelled == 2
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("one</s>two")
    corpus = Corpus(tmp_path / "text", "text", (".txt",), None)
    for _ in range(2):
        caplog.clear()
        token_streams(corpus, tokenizer, cache=tmp_path / "cache")
        assert "1 documents contain </s> or <s> as text" in caplog.text
        assert "data.text.separator" in caplog.text


# --- files ---------------------------------------------------------------------------------------


def test_a_class_of_another_family_changes_no_id(tmp_path):
    """transformers 5.3.0 gives this class a SentencePiece pre-tokeniser: no space is left."""
    folder = byte_level(tmp_path)
    right = load_tokenizer(folder).encode(CODE)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "LlamaTokenizerFast", "legacy": False, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(CODE) == right
    assert tokenizer.decode(right) == CODE
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    assert right == backend.encode(CODE, add_special_tokens=False).ids


def test_a_tokenizer_that_loses_spaces_is_refused(tmp_path):
    """What transformers 5.3.0 saves."""
    folder = byte_level(tmp_path)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "always",
        "split": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"tokenizer\.json: .*loses the spaces.*use the original"):
        load_tokenizer(folder)


def test_a_tokenizer_that_changes_indentation_is_warned_of(tmp_path, caplog):
    backend = Backend.from_file(str(byte_level(tmp_path) / "tokenizer.json"))
    load_tokenizer(tmp_path)
    assert not caplog.records
    backend.normalizer = normalizers.Replace("\t", " ")
    backend.save(str(tmp_path / "tokenizer.json"))
    load_tokenizer(tmp_path)
    assert "code does not survive" in caplog.text


@pytest.mark.parametrize("said", [True, False, None])
@pytest.mark.parametrize("templated", [True, False])
def test_the_config_says_whether_a_text_begins_with_bos(said, templated, tmp_path):
    folder = byte_level(tmp_path)
    if not templated:
        state = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps({**state, "post_processor": None}))
    if said is not None:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["add_bos_token"] = said
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    begins = templated if said is None else said
    assert (load_tokenizer(folder).bos_id is not None) == begins


def test_every_file_is_saved_as_it_came(tmp_path):
    """Also when the folder is gone by then."""
    folder = byte_level(tmp_path / "model")
    (folder / "chat_template.jinja").write_bytes(b"{{ bos_token }}\r\n")
    (folder / "generation_config.json").write_bytes(b'{"eos_token_id":[257, 259],"top_p":0.9}')
    (folder / "special_tokens_map.json").write_bytes(b'{"pad_token": "<|im_end|>"}')
    (folder / "tokenizer.model").write_bytes(b"not read")
    (folder / "weights.bin").write_bytes(b"not a tokenizer's")
    tokenizer = pickle.loads(pickle.dumps(load_tokenizer(folder)))  # noqa: S301  # our own bytes
    came = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "weights.bin"}
    shutil.rmtree(folder)
    tokenizer.save(tmp_path / "saved" / "tokenizer")
    saved = {p.name: p.read_bytes() for p in (tmp_path / "saved" / "tokenizer").iterdir()}
    assert saved == came
    again = load_tokenizer(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.control == tokenizer.control


def test_a_sentencepiece_folder_keeps_its_configs(sentencepiece_model, tmp_path):
    """An added `<|im_end|>` ends responses, as the configs say."""
    shutil.copyfile(sentencepiece_model, tmp_path / "tokenizer.model")
    plain = load_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 32000}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [2, 32000]}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.stop_ids) == (32000, {2, 32000})
    assert tokenizer.vocab_size == 32001
    assert tokenizer.encode("a<|im_end|>") == plain.encode("a<|im_end|>")
    assert tokenizer.decode([*tokenizer.encode("a"), 32000]) == "a"
    assert tokenizer.fingerprint != plain.fingerprint
    tokenizer.save(tmp_path / "run" / "tokenizer")
    assert load_tokenizer(tmp_path / "run").stop_ids == {2, 32000}


# --- ends of sequence ----------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
def test_every_end_of_sequence_is_known_and_kept(where, tmp_path):
    folder = byte_level(tmp_path / "model")
    eos = load_tokenizer(folder).eos_id
    (folder / where).write_text(json.dumps({"eos_token_id": [eos, eos + 2]}))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_id, tokenizer.stop_ids) == (eos, {eos, eos + 2})
    tokenizer.save(tmp_path / "run" / "tokenizer")
    assert load_tokenizer(tmp_path / "run").stop_ids == {eos, eos + 2}


@pytest.mark.parametrize("ends", [7, None, -1, []])
def test_one_end_of_sequence_or_none(ends, tmp_path):
    folder = byte_level(tmp_path)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": ends}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.stop_ids == {tokenizer.eos_id, *([7] if ends == 7 else [])}


@pytest.mark.parametrize("ends", ["</s>", [1.5], True, {"a": 1}])
def test_an_end_of_sequence_that_is_no_id_is_named(ends, tmp_path):
    folder = byte_level(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id must be"):
        load_tokenizer(folder)


# --- text that is not Unicode --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "micro", "sentencepiece"])
def test_a_lone_surrogate_is_named(kind, request):
    path = request.getfixturevalue("sentencepiece_model") if kind == "sentencepiece" else None
    tokenizer = make_tokenizer(kind, path)
    for encode in (tokenizer.encode, tokenizer.encode_with_ends, tokenizer.encode_continuation):
        with pytest.raises(UserError, match=r"lone surrogate \('\\ud800' at character 3\)"):
            encode("ab\ud800c")
    assert ByteTokenizer().decode(ByteTokenizer().encode("😀")) == "😀"
