"""The command line: thin, it reads arguments and calls a pipeline."""

__all__: list[str] = []
