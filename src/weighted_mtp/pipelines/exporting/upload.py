"""Uploading an export to the Hugging Face hub: what it lists of itself, and nothing beside it."""

from __future__ import annotations

import glob
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weighted_mtp.core.choices import SPECULATORS
from weighted_mtp.core.errors import UserError, in_brief
from weighted_mtp.core.input_files import InvalidTextError, read_regular
from weighted_mtp.core.logging import get_logger
from weighted_mtp.core.sums import Sums, sums_of, write_sums
from weighted_mtp.core.yaml_text import parse_yaml
from weighted_mtp.models.meta_mtp.checkpoints import CARD, detect_layout, inspect_checkpoint
from weighted_mtp.models.meta_mtp.layouts.huggingface import SUMS_FILE
from weighted_mtp.models.meta_mtp.layouts.json_file import JsonFile

log = get_logger(__name__)

_BESIDE = ("LICENSE*", "LICENCE*", "NOTICE*", ".gitattributes")
"""What a user may add to an export and publish with it, besides the card."""
_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def upload(
    directory: Path, repository: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Make the repository where there is none, and upload an export.

    The token is that of the hub's client: HF_TOKEN, or what `hf auth login` stored.

    Args:
        repository: ORG/NAME.
        private: of a new repository; one that is there stays as it is.
        revision: branch, made where there is none; None: main.

    Returns:
        Address of the commit.

    Raises:
        UserError: the export is damaged or no such, its card names no licence, or the hub refuses.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"{repository}: is not the name of a repository; give ORG/NAME")
    names = files_to_upload(directory)
    import huggingface_hub  # slow to import

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        with _staged(directory, names, repository) as stage:
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=stage,
                allow_patterns=[glob.escape(name) for name in names],
                revision=revision,
                commit_message="Upload with weighted-mtp",
            )
    except UserError:
        raise
    except Exception as error:  # the hub's client raises many kinds, of several libraries
        raise _refused(repository, error) from error
    return str(getattr(commit, "commit_url", None) or commit)


def files_to_upload(directory: Path) -> list[str]:
    """The names of an export's files: those with a sum, the sums, the card, a licence.

    Raises:
        UserError: it is damaged or no export, or its card names no licence.
    """
    layout = detect_layout(directory) if directory.is_dir() else None
    if layout not in ("huggingface", "mtp_llama"):
        raise UserError(
            f"{directory}: is not an export that the hub's readers know; write one with "
            f"weighted-mtp convert {directory} EXPORT --to hf --license ID"
        )
    _check_card(directory / CARD)
    inspect_checkpoint(directory, verify=True)
    if not (directory / SUMS_FILE).is_file():
        raise UserError(
            f"{directory}: has no {SUMS_FILE}, which lists what to upload; write the export with "
            "weighted-mtp convert"
        )
    listed = Sums.read(directory, SUMS_FILE).expected
    beside = {p.name for pattern in _BESIDE for p in directory.glob(pattern) if p.is_file()}
    names = sorted({*listed, SUMS_FILE, CARD, *beside})
    _tell_of_others(directory, names)
    return names


def _tell_of_others(directory: Path, names: Sequence[str]) -> None:
    there = (path.relative_to(directory).as_posix() for path in directory.rglob("*"))
    others = sorted(name for name in there if name not in names and (directory / name).is_file())
    if others:
        few = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        log.warning("%s: not uploaded, as the export does not list it: %s", directory, few)


@contextmanager
def _staged(directory: Path, names: Sequence[str], repository: str) -> Iterator[Path]:
    """A directory of links to the files; those that name this directory's path (a speculator names
    its base model so) are rewritten, and their sums with them."""
    here = str(directory.resolve())
    with tempfile.TemporaryDirectory() as folder:
        stage, changed = Path(folder), []
        for name in names:
            source, target = directory.resolve() / name, stage / name
            target.parent.mkdir(parents=True, exist_ok=True)
            text = _published(source, here, repository)
            if text is None:
                target.symlink_to(source)
                continue
            target.write_text(text, encoding="utf-8")
            changed.append(name)
        listed = dict(Sums.read(directory, SUMS_FILE).expected)
        changed = [name for name in changed if name in listed]
        if changed:
            log.info("%s: its path is left out of %s", directory, ", ".join(changed))
            (stage / SUMS_FILE).unlink()
            write_sums(stage, listed | sums_of(stage, (stage / x for x in changed)), SUMS_FILE)
        yield stage


def _published(path: Path, here: str, repository: str) -> str | None:
    """What a file says in place of this machine's path; None if it does not name it."""
    if path.suffix == ".md":
        text = path.read_text(encoding="utf-8", errors="replace")
        return text.replace(here, "DIRECTORY") if here in text else None
    if path.name != "config.json" or path.parent.name not in SPECULATORS:
        return None
    fields = JsonFile.read(path).fields
    try:
        verifier = fields["speculators_config"]["verifier"]
        if not Path(verifier["name_or_path"]).is_absolute():
            return None
        verifier["name_or_path"] = repository
    except (KeyError, TypeError):
        return None
    return json.dumps(fields, indent=2) + "\n"


def _check_card(path: Path) -> None:
    """Raise `UserError` unless the card's front matter names a licence."""
    remedy = "write `license: ID` into its front matter, or convert again with --license ID"
    try:
        text = read_regular(path).decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; the hub needs a model card: convert again with --license ID"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read; {remedy}") from error
    match = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
    try:
        fields: Any = parse_yaml(match[1]) if match else {}
    except InvalidTextError as error:
        raise UserError(f"{path}: its front matter is not YAML ({error}); correct it") from error
    if not isinstance(fields, dict) or not fields.get("license"):
        raise UserError(f"{path}: names no licence; {remedy}")


def _refused(repository: str, error: Exception) -> UserError:
    import huggingface_hub

    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "LocalTokenNotFoundError" in kinds or status in (401, 403):
        return UserError(
            f"{repository}: the hub does not let you write there; log in with hf auth login, or "
            "set HF_TOKEN to a token with write access"
        )
    reason = in_brief(error)
    token = huggingface_hub.get_token()
    if token:
        reason = reason.replace(token, "…")
    return UserError(f"{repository}: the upload failed ({reason}); run the command again")
