"""Checkpoints of a run: written, resumed, copied to remote storage."""
