"""Tokenizers, and rows and plain text as tokens, encoded once and memory-mapped."""
