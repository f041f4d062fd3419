"""Exports of byte and SentencePiece tokenizers: AutoTokenizer gives our ids."""

import io
import json
import random
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer

from weighted_mtp.data.tokens.derived import derived_files
from weighted_mtp.data.tokens.sentencepiece import SentencePieceTokenizer
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from weighted_mtp.models.meta_mtp.layouts.side_files import find_side_files, tokenizer_file

CODE = Path(json.decoder.__file__).read_text(encoding="utf-8")

NASTY = [
    "def f(xs):\n    if xs:\n\t\treturn xs[0]\n\n\n",
    " x",
    "    four",
    "\tx\r\n\t\t y",
    "a  b   c    ",
    "\n\n",
    "",
    " ",
    "é漢😀 e\u0301 ﬁ ½ \u00a0\u200b\u2028",
    "▁x ▁▁ y▁",
    "\x00\x01\x7f",
    "[INST] x [/INST]",
    "aaaaaaaaaaaaaaa ================ -------",
    "<0x0A> <0xE9>",
    "[REFERENCE_DOC_1] x[REFERENCE_DOC_10][REFERENCE_DOC_1]\n  y",
]


def nasty_texts(count: int) -> list[str]:
    rng, code = random.Random(0), CODE
    pieces = [*" \t\n\r=-#_()aé漢😀▁", "  ", "    ", "\n\n", "aa", "return", "x1"]
    texts = list(NASTY)
    for _ in range(count):
        texts.append("".join(rng.choice(pieces) * rng.randint(1, 6) for _ in range(12)))
        start = rng.randrange(len(code))
        texts.append(code[start : start + rng.randint(1, 300)])
    return texts


def write(tokenizer: Tokenizer, source: Path) -> Path:
    """An export's folder: the original file and what is derived from it."""
    for name, text in (derived_files(tokenizer, source) or {}).items():
        (source.parent / name).write_text(text, encoding="utf-8")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (source.parent / "config.json").write_text(json.dumps(config))
    return source.parent


@pytest.fixture(
    params=["bytes", "tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"]
)
def original(request, tmp_path, sentencepiece_model) -> tuple[Tokenizer, Path]:
    if request.param == "bytes":
        ByteTokenizer().save(tmp_path)
        return ByteTokenizer(), tmp_path / "bytes.json"
    path = tmp_path / "tokenizer.model"
    path.write_bytes((sentencepiece_model.parent / request.param).read_bytes())
    return SentencePieceTokenizer(path), path


def test_auto_tokenizer_gives_our_ids(original):
    tokenizer, source = original
    folder = write(tokenizer, source)
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for text in nasty_texts(300):
        # Theirs makes control tokens of what spells them; ours never does.
        ids = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ids == tokenizer.encode(text), text
        spells = any(token in text for token in theirs.all_special_tokens)
        assert spells or theirs.decode(ids) == tokenizer.decode(ids)
    assert theirs("x").input_ids == [tokenizer.bos_id, *tokenizer.encode("x")]
    assert theirs.eos_token_id == tokenizer.eos_id
    assert len(theirs) == tokenizer.vocab_size
    assert "token_type_ids" not in theirs("x")  # which `generate(**batch)` would refuse


def test_the_original_stays_what_we_load_and_carry(original):
    tokenizer, source = original
    folder = write(tokenizer, source)
    assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint
    assert list(find_side_files(folder)) == [source.name]
    assert tokenizer_file(folder) == source


PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize(
    ("kind", "options", "derived"),
    [
        ("bpe", {**PLAIN, "byte_fallback": True, "vocab_size": 500}, True),
        (
            "bpe",
            {**PLAIN, "byte_fallback": True, "vocab_size": 500, "add_dummy_prefix": False},
            True,
        ),
        ("bpe", {**PLAIN, "byte_fallback": True, "vocab_size": 500, "bos_id": -1}, True),
        ("bpe", {**PLAIN, "user_defined_symbols": ["return", "    ", "a="]}, True),
        ("bpe", {}, False),
        ("bpe", {**PLAIN, "remove_extra_whitespaces": True}, False),
        ("unigram", PLAIN, False),
    ],
)
def test_other_sentencepiece_models_give_our_ids_or_no_file(tmp_path, kind, options, derived):
    """By default SentencePiece trains models that normalise text: those get no file."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CODE.splitlines()),
        model_writer=model,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"vocab_size": 300, **options},
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = SentencePieceTokenizer(tmp_path / "tokenizer.model")
    folder = write(tokenizer, tmp_path / "tokenizer.model")
    assert (folder / "tokenizer.json").exists() == derived
    if derived:
        theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        for text in nasty_texts(100):
            assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode(text), text
