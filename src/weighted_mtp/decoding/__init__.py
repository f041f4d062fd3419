"""Writing tokens with a model: a KV cache, greedy or sampled."""

from weighted_mtp.decoding.generate import Sampling, generate

__all__ = ["Sampling", "generate"]
