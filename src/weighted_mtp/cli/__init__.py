"""The command line: thin, it reads arguments and calls a pipeline."""
