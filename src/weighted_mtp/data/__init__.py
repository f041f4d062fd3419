"""Rows, tokenizers and batches."""
