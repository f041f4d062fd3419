"""What a command must not import: a person waits for it, and PyTorch alone takes a second."""

import json
import subprocess
import sys

import pytest
import torch
from tests.unit.checkpoint_cases import tiny

from weighted_mtp.cli.main import COMMANDS, main
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
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


SLOW = ("matplotlib", "transformers", "datasets", "pyarrow", "torch._dynamo", "torch.onnx")
SLOW += ("torch.distributed.fsdp", "torch.utils.tensorboard", "mlflow", "fsspec")
TRAINING = tuple(f"weighted_mtp.{x}" for x in ("pipelines.compose", "micro_tasks", "decoding"))


def ended_without(needless, words):
    """Run a command in a process of its own, where none of these modules may be imported."""
    asked = [sys.executable, "-c", RUN, ",".join(needless), *words]
    ended = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended


def test_a_dry_run_imports_what_it_needs():
    words = ["train", "--recipe", "baseline", "--preset", "micro", "--dry-run"]
    ended_without((*SLOW, *TRAINING, "jinja2"), words)


def test_generate_imports_what_it_needs(tmp_path):
    save_native(tiny(vocab_size=259, max_seq_len=128), tmp_path / "model")
    folder = tmp_path / "model" / "tokenizer"
    folder.mkdir()
    ByteTokenizer().save(folder)
    words = ["generate", str(tmp_path / "model"), "--prompt", "a", "--template", "raw"]
    needless = (*SLOW, "pydantic", "yaml", "jinja2", "sentencepiece", "weighted_mtp.micro_tasks")
    ended_without(needless, [*words, "--max-new-tokens", "1"])


def test_a_chat_template_needs_jinja_alone():
    code = "import sys; from weighted_mtp.data.tokens.chat_environment import render\n"
    code += "print(render('{{ x }}{% generation %}b{% endgeneration %}', {'x': 'a'}))\n"
    code += f"sys.exit(str(set({LIBRARIES!r}) & set(sys.modules) or ''))"
    asked = [sys.executable, "-c", code]
    ended = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert ended.stdout == "('ab', [(1, 2)])\n"
    assert not ended.stderr.strip()


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
