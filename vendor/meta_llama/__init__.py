"""A plain reference of the multi-token-prediction LLaMA, for tests only (see VERSION)."""

from vendor.meta_llama.generation import Llama
from vendor.meta_llama.model import ModelArgs, Transformer
from vendor.meta_llama.tokenizer import Tokenizer

__all__ = ["Llama", "ModelArgs", "Tokenizer", "Transformer"]
