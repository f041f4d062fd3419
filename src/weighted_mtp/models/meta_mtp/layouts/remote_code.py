"""The modelling code that an export to Hugging Face's layout carries, for `trust_remote_code=True`.

The files in `remote/` are data here: they are copied into exports, with the class of the family in
the place of Llama's, and never imported from a model's folder.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from weighted_mtp.models.meta_mtp.layouts.hf_config import KINDS

AUTO_MAP = {"AutoModelForCausalLM": "modeling_mtp.MTPForCausalLM"}
FILES = ("modeling_mtp.py", "decoding_mtp.py")
GENERATE_FILE = "custom_generate/generate.py"


def code_files(family: str) -> dict[str, str]:
    """Text of the files by their path in an export.

    Args:
        family: `model_type` of the plain model.
    """
    folder = resources.files("weighted_mtp.models.meta_mtp.layouts") / "remote"
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in FILES}
    modelling = texts["modeling_mtp.py"]
    base = KINDS[family].architecture
    texts["modeling_mtp.py"] = modelling.replace("import LlamaForCausalLM as", f"import {base} as")
    generate = re.search(r"^GENERATE = '''(.*?)'''", modelling, re.MULTILINE | re.DOTALL)
    assert generate is not None
    return {**texts, GENERATE_FILE: generate[1]}


def write_code(family: str, directory: Path) -> None:
    """Write the files into an export."""
    for name, text in code_files(family).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
