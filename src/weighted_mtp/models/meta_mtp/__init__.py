"""The MTP LLaMA: transformer, adapter, value head, checkpoints."""
