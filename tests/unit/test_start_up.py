"""What a command must not import: a person waits for it, and PyTorch alone takes a second."""

import json
import subprocess
import sys

import pytest

from weighted_mtp.cli.main import COMMANDS

HEAVY = ("torch", "numpy", "pydantic", "safetensors", "tokenizers", "transformers", "matplotlib")

SHOW = """
import json, sys
from weighted_mtp.cli.main import build_parser

def show(parser):
    parser.format_help()
    for action in parser._actions:
        if isinstance(getattr(action, "choices", None), dict):
            for below in action.choices.values():
                show(below)

imported = {}
for name in json.loads(sys.argv[1]):
    show(build_parser(name))
    imported[name] = sorted(sys.modules)
print(json.dumps(imported))
"""

RUN = """
import sys
from weighted_mtp.cli.main import main
status = main(sys.argv[2:])
found = [name for name in sys.argv[1].split(",") if name in sys.modules]
sys.exit(f"imported {found}" if found else status)
"""


def test_no_help_waits_for_a_heavy_module():
    words = [sys.executable, "-c", SHOW, json.dumps(list(COMMANDS))]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for name, modules in json.loads(shown).items():  # the first one named is the one at fault
        assert not set(HEAVY) & set(modules), name


@pytest.mark.parametrize(
    ("words", "needless"),
    [
        (["train", "--recipe", "baseline", "--preset", "micro", "--dry-run"], ()),
    ],
    ids=lambda value: value[0] if value else "",
)
def test_a_command_imports_what_it_needs(words, needless):
    needless = (*needless, "matplotlib", "transformers", "datasets", "torch._dynamo", "torch.onnx")
    asked = [sys.executable, "-c", RUN, ",".join(needless), *words]
    ended = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
