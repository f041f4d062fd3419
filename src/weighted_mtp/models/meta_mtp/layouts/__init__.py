"""The three checkpoint layouts on disk, read and written; `checkpoints.py` is the door."""
