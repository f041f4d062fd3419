"""From what a person names to the directory of a model: the one place that resolves

- a run directory: its newest complete checkpoint,
- a checkpoint of a run: its `model/`,
- the directory of a model in any layout,
- a single GGUF file (`core/gguf.py`),
- a model of the Hugging Face hub, `ORG/NAME` or `ORG/NAME@REVISION`.

What cannot be a model (an adapter, pointers of Git-LFS) is refused with the way out.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from weighted_mtp.core.errors import UserError, in_brief, refuse_credentials
from weighted_mtp.core.gguf import is_gguf, unpacked
from weighted_mtp.core.input_files import read_json

MARKER = "COMPLETE"
"""Written last into a checkpoint; without it the directory is not one."""
HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
HUB_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja"),
    *("tokenizer.model", "*/tokenizer.model"),
)
"""What is downloaded of a model: tensors, configuration and tokenizer, never pickles or code."""
_LFS = b"version https://git-lfs.github.com/spec/"
_POINTERS = (".safetensors", ".bin", ".pth", ".json", ".model", ".jinja")
_WEIGHTS = ("*.safetensors", "safetensors/*", "*.pth", "*.bin", "*.index.json")
_GGUF = "of a folder's GGUF files, give the one that you mean"
_NAMES = "give a run, a checkpoint, a model directory, or ORG/NAME of a model on the hub"


def find_model(given: str | Path) -> Path:
    """The directory with the weights of the model that is meant.

    Raises:
        UserError: nothing is there, it is not a model we read, or its weights are in parts.
    """
    path = newest_checkpoint(given)
    if is_sharded(path) and not (path / "model").is_dir():
        command = shlex.join(["weighted-mtp", "convert", str(path), "DIRECTORY"])
        raise UserError(
            f"{path}: its model is in parts, one for each process; make it whole with {command}, "
            "and give that directory"
        )
    path = path / "model" if (path / MARKER).exists() else path
    _check_kind(path)
    return path


def find_tokenizer(given: str | Path) -> Path:
    """The directory, of all that `find_model` takes, in which its tokenizer lies (or in
    `tokenizer/` there); it may hold a tokenizer alone.

    Raises:
        UserError: nothing is there.
    """
    path = newest_checkpoint(given)
    if (path / MARKER).exists():
        path = path / ("model" if (path / "model").is_dir() else "skeleton")
    _check_pointers(path)
    return path


def newest_checkpoint(given: str | Path) -> Path:
    """The newest complete checkpoint of a run; the directory of anything else.

    Raises:
        UserError: nothing is there.
    """
    refuse_credentials(str(given), "the name of a model")
    path = Path(given).expanduser()
    if not path.exists():
        return _of_the_hub(str(given))
    if is_gguf(path):
        return unpacked(path)
    if not path.is_dir():
        raise UserError(f"{path}: {_kind_of_file(path)}")
    if path.name == "checkpoints" and (path.parent / "config.yaml").exists():
        path = path.parent
    newest = complete_checkpoints(path)
    if not newest and (path / "config.yaml").exists():
        raise UserError(f"{path}: this run has saved no complete checkpoint yet")
    if (path / "trainer.json").exists() and not (path / MARKER).exists():
        raise UserError(f"{path}: this checkpoint is not complete; give the run, or an earlier one")
    return newest[-1] if newest else path


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first; not one that was to be renamed yet."""
    return sorted(path.parent for path in run_dir.glob(f"checkpoints/step-*[0-9]/{MARKER}"))


def is_sharded(checkpoint: Path) -> bool:
    """Whether model and optimizer lie there in parts."""
    return (checkpoint / "shards").is_dir()


def is_hub_id(given: str | Path) -> bool:
    """Whether a model of the hub is meant: nothing of that name is here, and nothing could be."""
    name = str(given)
    path = Path(name).expanduser()
    here = path.exists() or path.parent.exists()
    return not here and HUB_ID.fullmatch(name) is not None


def results_folder(given: Path) -> Path:
    """Where results about a model are kept unless another place is named: beside it, for a model of
    the hub in `runs/ORG--NAME`, for a GGUF file in `runs/STEM`."""
    if given.is_file():  # a GGUF file
        return Path("runs") / given.stem
    if not is_hub_id(given):
        return given
    return Path("runs") / str(given).replace("/", "--")


def has_chat_template(model_dir: Path) -> bool:
    """Whether the tokenizer stored with a model says how to write a conversation."""
    for folder in (model_dir / "tokenizer", model_dir):
        if (folder / "chat_template.jinja").is_file():
            return True
        config = folder / "tokenizer_config.json"
        try:
            fields = read_json(config)
        except (OSError, UserError, ValueError):
            continue
        if isinstance(fields, dict) and fields.get("chat_template"):
            return True
    return False


def _of_the_hub(name: str) -> Path:
    """The local copy of a model on the hub, downloaded if need be."""
    if not is_hub_id(name):
        raise UserError(f"{name}: no such directory; {_NAMES}")
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed

    match = HUB_ID.fullmatch(name)
    repository, revision = (match["name"], match["revision"]) if match else (name, None)
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=list(HUB_FILES))
    except Exception as error:  # the hub's client raises many kinds, of several libraries
        raise UserError(f"{name}: no such directory, and {_hub_failure(error, repository)}") from (
            error
        )
    path = Path(folder)
    if not any(path.rglob("*.safetensors")):
        command = shlex.join(["hf", "download", repository, "--local-dir", "DIRECTORY"])
        raise UserError(
            f"{name}: this model of the hub has no safetensors files (pickles are not fetched); if "
            f"you trust it, run {command} and give the directory"
        )
    return path


def _hub_failure(error: Exception, repository: str) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return "the hub asks you to accept its licence first: do that, then hf auth login"
    if "RepositoryNotFoundError" in kinds:
        return f"the hub has no model of that name, or not for you (hf auth login); {_NAMES}"
    if "RevisionNotFoundError" in kinds:
        return "the hub's model has no such revision; give ORG/NAME@BRANCH, a tag or a commit"
    command = shlex.join(["hf", "download", repository, "--local-dir", "DIRECTORY"])
    reason = "it is not in the local cache and the hub cannot be reached"
    if not kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError"}:
        reason = f"it cannot be fetched from the hub ({in_brief(error, 160)})"
    return f"{reason}; where there is a network, run {command}, and give that directory"


def _check_kind(path: Path) -> None:
    """Raise `UserError`, with the way out, for folders that are not models but look like them."""
    _check_pointers(path)
    found = (file for pattern in _WEIGHTS for file in path.glob(pattern))
    if any(file.stem != "adapter_model" for file in found):
        return
    if (path / "adapter_config.json").is_file() and not (path / "mtp" / "base.json").is_file():
        base = _base_of(path / "adapter_config.json")
        raise UserError(
            f"{path}: is a PEFT adapter{base}, not a whole model; merge it first, in Python: "
            f"peft.AutoPeftModelForCausalLM.from_pretrained({str(path)!r}).merge_and_unload()"
            ".save_pretrained(DIRECTORY), and give that directory"
        )
    if any(path.glob("*.gguf")):
        raise UserError(f"{path}: no checkpoint found; {_GGUF}; the folder holds {listing(path)}")


def listing(folder: Path) -> str:
    """The first names in a folder, and how many more there are."""
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:5]) or "nothing"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _base_of(config: Path) -> str:
    try:
        base = read_json(config)["base_model_name_or_path"]
    except (OSError, UserError, ValueError, LookupError, TypeError):
        return ""
    return f" for {base}" if isinstance(base, str) and base else ""


def _kind_of_file(path: Path) -> str:
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(_LFS))
        if start == _LFS:
            return f"is a Git-LFS pointer, not the file itself; {_pull(path.parent)}"
    return "is a file; give the directory that holds it"


def _check_pointers(model_dir: Path) -> None:
    for folder in (model_dir, *(model_dir / name for name in ("safetensors", "tokenizer", "mtp"))):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix in _POINTERS and path.is_file() and path.stat().st_size < 1024:
                with path.open("rb") as file:
                    if file.read(len(_LFS)) == _LFS:
                        raise UserError(
                            f"{path}: is a Git-LFS pointer, not the file itself; {_pull(model_dir)}"
                        )


def _pull(folder: Path) -> str:
    return f"run {shlex.join(['git', '-C', str(folder), 'lfs', 'pull'])}"
