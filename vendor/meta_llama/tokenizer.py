"""A thin wrapper of a SentencePiece model, which is the only thing that needs SentencePiece."""

from collections.abc import Sequence


class Tokenizer:
    def __init__(self, model_path: str) -> None:
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_file=model_path)
        self.n_words: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.pad_id: int = self._processor.pad_id()  # -1: the model has none

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        ids: list[int] = self._processor.encode(s)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._processor.decode(list(ids))
        return text
