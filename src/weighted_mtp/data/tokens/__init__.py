"""Tokenizers, and rows and plain text as tokens, encoded once and memory-mapped."""

from typing import TYPE_CHECKING

from weighted_mtp._lazy import exports

if TYPE_CHECKING:
    from weighted_mtp.data.tokens.huggingface import HuggingFaceTokenizer as HuggingFaceTokenizer
    from weighted_mtp.data.tokens.sentencepiece import (
        SentencePieceTokenizer as SentencePieceTokenizer,
    )
    from weighted_mtp.data.tokens.tokenizers import ByteTokenizer as ByteTokenizer
    from weighted_mtp.data.tokens.tokenizers import Tokenizer as Tokenizer
    from weighted_mtp.data.tokens.tokenizers import load_tokenizer as load_tokenizer
    from weighted_mtp.data.tokens.tokenizers import make_tokenizer as make_tokenizer
else:
    __all__, __getattr__, __dir__ = exports(
        __name__,
        {
            "huggingface": "HuggingFaceTokenizer",
            "sentencepiece": "SentencePieceTokenizer",
            "tokenizers": "ByteTokenizer Tokenizer load_tokenizer make_tokenizer",
        },
    )
