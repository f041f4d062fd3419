"""The options of every command, in a module of its name that has `add_arguments(parser)`.

Help is shown, and a mistake in the options told, before the command's own module in `cli/` is
imported, so nothing here may import PyTorch, NumPy or pydantic: names to choose from come from
`core/choices.py` and other light tables (`tests/unit/test_start_up.py`).
"""

__all__: list[str] = []
