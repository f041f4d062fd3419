"""Labelled rows: JSONL files converted once into memory-mapped tables."""
