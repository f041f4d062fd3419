"""The modelling code that an export to Hugging Face's layout carries, for `trust_remote_code=True`.

The files in `remote/` are data here: they are copied into exports, with the class of the family in
the place of Llama's, and never imported from a model's folder.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any

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


def modelling_class(family: str, folder: Path) -> Any:
    """This package's own modelling class, whatever code a model's folder holds.

    Args:
        folder: where the files are written to be imported; it must outlive the class.
    """
    name = f"_weighted_mtp_remote_{family}"
    if name not in sys.modules:
        write_code(family, folder)
        (folder / "__init__.py").touch()
        for module in (name, f"{name}.modeling_mtp"):
            file = "__init__.py" if module == name else "modeling_mtp.py"
            spec = importlib.util.spec_from_file_location(module, folder / file)
            assert spec is not None
            assert spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            if module == name:
                loaded.__path__ = [str(folder)]
            sys.modules[module] = loaded
            spec.loader.exec_module(loaded)
    return sys.modules[f"{name}.modeling_mtp"].MTPForCausalLM
