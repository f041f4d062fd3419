"""What a command must not import: a person waits for it, and PyTorch alone takes a second."""

import json
import subprocess
import sys

import pytest
import torch
from tests.unit.checkpoint_cases import tiny

from weighted_mtp.cli.main import COMMANDS, main
from weighted_mtp.models.meta_mtp.checkpoints import save_huggingface, save_mtp_llama, save_native
from weighted_mtp.models.meta_mtp.value_head import ValueHead

LIBRARIES = ("torch", "numpy", "pydantic", "yaml", "safetensors", "tokenizers", "transformers")
HEAVY = (*LIBRARIES, "datasets", "pyarrow", "matplotlib", "multiprocessing")

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


REFUSING = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy", "transformers", "pydantic", "yaml"):
            raise AssertionError(f"imports {name}")

sys.meta_path.insert(0, Refused())
from weighted_mtp.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("save", [save_native, save_huggingface, save_mtp_llama])
@pytest.mark.parametrize("shards", [2**30, 20_000])
def test_a_checkpoint_is_described_without_pytorch(save, shards, tmp_path, capsys):
    model = tiny(n_kv_heads=2, tie_embeddings=True)
    model.draft_ids = torch.tensor([0, 3, 39])
    ValueHead(model.args.dim).save_checkpoint(tmp_path / "value_head.safetensors")
    head = tmp_path / "value_head.safetensors"
    save(model.bfloat16(), tmp_path / "model", max_shard_bytes=shards, value_head_file=head)
    words = ["inspect", str(tmp_path / "model")]
    asked = [sys.executable, "-c", REFUSING, *words]
    ended = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "drafts from  3 of 40 tokens" in ended.stdout
    assert main(words) == 0
    assert ended.stdout == capsys.readouterr().out
