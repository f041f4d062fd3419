"""Text piece by piece is the whole text; stop strings are found across the borders of tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import tiny_args, tiny_model

from weighted_mtp.data.tokens.tokenizers import (
    ByteTokenizer,
    SentencePieceTokenizer,
    make_tokenizer,
)
from weighted_mtp.decoding import Sampling, Speculation, Stopping, Stream, complete_naively
from weighted_mtp.decoding.stopping import Text

BYTES, MICRO = ByteTokenizer(), make_tokenizer("micro")


def pieces_of(ids, decode, strings=()) -> tuple[list[str], bool]:
    text, pieces = Text(decode, strings), []
    for number, token in enumerate(ids, 1):
        ended = text.push(token) or number == len(ids)
        pieces.append(text.take(final=ended))
        if ended:
            break
    return pieces, text.stopped


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([65, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xFF, 10, 257]), max_size=12))
def test_pieces_of_any_bytes_make_the_text(ids):
    pieces, _ = pieces_of(ids, BYTES.decode)
    assert "".join(pieces) == BYTES.decode(ids)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, MICRO.vocab_size - 1), max_size=10))
def test_pieces_of_any_byte_level_tokens_make_the_text(ids):
    assert "".join(pieces_of(ids, MICRO.decode)[0]) == MICRO.decode(ids)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    text=st.text("ab é€😀\n def", max_size=20), extra=st.lists(st.integers(3, 31_999), max_size=5)
)
def test_pieces_of_sentencepiece_tokens_make_the_text(sentencepiece_model, text, extra):
    tokenizer = SentencePieceTokenizer(sentencepiece_model)
    ids = tokenizer.encode(text) + extra
    assert "".join(pieces_of(ids, tokenizer.decode)[0]) == tokenizer.decode(ids)


def test_no_piece_ends_inside_a_character():
    pieces, _ = pieces_of("aé€😀b".encode(), BYTES.decode)
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "😀", "b"]


TOKENS = ["a", "b", "ab", "ba", "", "c", "é", "aab"]


def spell(ids) -> str:
    return "".join(TOKENS[i] for i in ids)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    ids=st.lists(st.integers(0, len(TOKENS) - 1), min_size=1, max_size=14),
    strings=st.lists(st.text("abcé", min_size=1, max_size=4), max_size=3),
)
def test_the_text_ends_before_the_first_stop_string(ids, strings):
    expected, stopped = spell(ids), False
    for end in range(1, len(ids) + 1):
        text = spell(ids[:end])
        places = [text.find(string) for string in strings if string in text]
        if places:
            expected, stopped = text[: min(places)], True
            break
    pieces, found = pieces_of(ids, spell, strings)
    assert ("".join(pieces), found) == (expected, stopped)


def test_what_may_become_a_stop_string_is_held_back():
    pieces, stopped = pieces_of(b"x\n\ny\n\n\nz", BYTES.decode, ["\n\n\n"])
    assert pieces == ["x", "", "", "\n\ny", "", "", ""]
    assert stopped


def test_a_stop_string_before_half_a_character_is_found():
    def decode(ids):
        return b"".join([b"END\xe2", b"\x82\xac"][i] for i in ids).decode(errors="replace")

    assert pieces_of([0, 1], decode, ["END"]) == ([""], True)
    assert pieces_of([0, 1], decode) == (["", "END€"], False)


# --- with a model --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "speculation"),
    [
        (Sampling(), None),
        (Sampling(), Speculation()),
        (Sampling(), Speculation(2)),
        (Sampling(1.0, seed=2), None),
        (Sampling(1.0, seed=2), Speculation(1)),  # one draw for a token, as in plain decoding
    ],
)
def test_a_stream_equals_the_naive_text(sampling, speculation):
    """Stop strings are cut from the texts themselves, so that they do occur, across borders."""
    model = tiny_model(dtype=torch.float64).requires_grad_(False)

    def decode(ids):
        return "".join(TOKENS[i % len(TOKENS)] for i in ids)

    prompts = [[1, 2, 3], [4], [5, 6]]
    for strings in ((), ("aba",), ("bc", "aab"), ("never",)):
        stopping = Stopping(10, 9, strings, decode)
        stream = Stream(model, prompts, stopping, sampling, speculation)
        pieces = [piece for turn in stream for piece in turn]
        for row, (prompt, whole) in enumerate(zip(prompts, stream.completions(), strict=True)):
            mine = [piece for piece in pieces if piece.row == row]
            naive = complete_naively(model, prompt, stopping, sampling, row)
            assert "".join(piece.text for piece in mine) == whole.text == naive.text
            assert [t for piece in mine for t in piece.tokens] == whole.tokens == naive.tokens
            assert [p.finish for p in mine if p.finish] == [whole.finish] == [naive.finish]


def test_an_unfinished_stream_has_no_completions():
    stream = Stream(tiny_model(tiny_args()), [[1]], Stopping(3))
    next(stream)
    with pytest.raises(ValueError, match="has not ended"):
        stream.completions()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strings": ("",), "decode": spell}, "must not be empty"),
        ({"strings": ("a",)}, "need decode"),
        ({"strings": "abc", "decode": spell}, "must be a list"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
    ],
)
def test_impossible_stopping_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Stopping(**{"max_new_tokens": 3, **changes})
