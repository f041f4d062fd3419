"""The trainer, its step, and what every objective shares."""
