"""What the site needs beyond docs/: API pages from `__all__`, and linked files that are elsewhere.

Pages are written for the repository: `../benchmarks/results/x.md` works there. Every such file gets
a page under `repository/`, and links are rewritten to it. Nothing of the package is imported.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS, SOURCE = ROOT / "docs", ROOT / "src" / "weighted_mtp"
ALWAYS = ("CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
ELSEWHERE = re.compile(r"^(?:[a-z]+:|/|#)")

# The names of `import weighted_mtp`, as docs/python.md groups them.
GROUPS = {
    "Recipes and runs": "Recipe load_recipe train estimate plan evaluate",
    "Models": "load save MetaLlamaMTPAdapter Transformer ModelArgs KVCache ValueHead",
    "Tokenizers": "load_tokenizer make_tokenizer",
    "Decoding": "Decoder complete Stream Stopping Sampling Speculation",
    "Loss": "mtp_loss LossTerms MTPLoss shift_labels count_targets",
    "Objectives": "Objective register_objective",
    "Token weights": "compute_td_errors compute_td_targets compute_advantages build_weights "
    "compute_mtp_selective_weights",
    "Others": "Sandbox UserError",
}


# --- the API -------------------------------------------------------------------------------------


def exported(init: Path) -> dict[str, str]:
    """Return where each public name of a package comes from, as `name: module`."""
    room = ".".join(init.parent.relative_to(SOURCE.parent).parts)
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(init.read_text(encoding="utf-8"))):
        if not isinstance(node, (ast.Assign, ast.Call)):
            continue
        if isinstance(node, ast.Call):  # imported when first used: exports(__name__, {...})
            if isinstance(node.func, ast.Name) and node.func.id == "exports":
                homes = ast.literal_eval(node.args[1])
                found |= {
                    n: f"{room}.{home}" for home, names in homes.items() for n in names.split()
                }
        elif ast.unparse(node.targets[0]) == "__all__" and isinstance(node.value, ast.List):
            found |= dict.fromkeys(ast.literal_eval(node.value), room)
    return found


def home(room: str, name: str) -> str | None:
    """Return the dotted path that defines `name` of `room`; None for a module."""
    path = SOURCE.parent.joinpath(*room.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name and node.module != room:
                    return home(node.module, alias.name)
    if (path / f"{name}.py").exists() or (path / name).is_dir():
        return None
    return f"{room}.{name}"


def api_pages() -> dict[str, str]:
    """Return the Markdown of the API's pages by their place in the site."""
    where = exported(SOURCE / "__init__.py")
    real = {name: home(module, name) for name, module in where.items()}
    lines = ["# Python API\n", "`import weighted_mtp as wm` gives these names. How to use them: "]
    lines[-1] += "[From Python](../python.md).\n"
    for title, names in GROUPS.items():
        lines.append(f"## {title}\n")
        lines += [f"::: {real[name]}\n" for name in names.split()]
    pages = {"api/index.md": "\n".join(lines)}
    seen = set(real.values())
    for init in sorted(SOURCE.glob("*/**/__init__.py")):
        room = ".".join(init.parent.relative_to(SOURCE).parts)
        found = [home(module, name) for name, module in exported(init).items()]
        paths = [path for path in dict.fromkeys(found) if path and path not in seen]
        if paths:
            seen.update(paths)
            text = f"# `weighted_mtp.{room}`\n\n" + "".join(f"::: {path}\n\n" for path in paths)
            pages[f"api/{room}.md"] = text
    return pages


# --- files outside docs/ -------------------------------------------------------------------------


def links(path: Path, text: str) -> list[Path]:
    """Return the files of the repository, outside docs/, to which a page links."""
    targets = [m[2] for m in LINK.finditer(text) if not ELSEWHERE.match(m[2])]
    paths = [Path(os.path.normpath(path.parent / target)) for target in targets]
    return [p for p in paths if p.exists() and ROOT in p.parents and not p.is_relative_to(DOCS)]


def place(path: Path) -> str:
    """Return where a file of the repository stands in the site, relative to docs/."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = f"repository/{path.relative_to(ROOT).as_posix()}"
    if path.is_dir():
        return f"{name}/index.md"
    return name if path.suffix in (".md", ".json", ".ipynb") else f"{name}.md"


def content(path: Path) -> str:
    """Return what the site shows of a file: itself, or a page with its text or its listing."""
    title = f"# `{path.relative_to(ROOT).as_posix()}`\n\n"
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.is_file())
        return title + "".join(f"- [{name}]({name})\n" for name in names)
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".md", ".json", ".ipynb"):
        return text
    language = {".py": "python", ".yaml": "yaml"}.get(path.suffix, "text")
    return f"{title}````{language}\n{text}````\n"


def rewritten(source: Path, text: str) -> str:
    """Return a page of the repository with its links as the site needs them."""
    here = Path(place(source)).parent

    def change(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / match[2]))
        if ELSEWHERE.match(match[2]) or not target.exists() or target == ROOT / "README.md":
            return match[0]
        return match[1] + os.path.relpath(place(target), here).replace(os.sep, "/") + match[3]

    return LINK.sub(change, text)


# --- what mkdocs calls ---------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Put the API's pages into the navigation."""
    reference = next(item["Reference"] for item in config.nav if "Reference" in item)
    names = [name for name in api_pages() if name != "api/index.md"]
    rooms = [{Path(name).stem: name} for name in names]
    reference.append({"API": ["api/index.md", *rooms]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the API's pages, and the files outside docs/ that are linked to, from anywhere."""
    from mkdocs.structure.files import File  # the tests read this file where mkdocs is not

    for name, text in api_pages().items():
        files.append(File.generated(config, name, content=text))
    waiting = [ROOT / name for name in ALWAYS]
    for page in DOCS.rglob("*.md"):
        waiting += links(page, page.read_text(encoding="utf-8"))
    done: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        text = content(path)
        if path.is_dir():
            waiting += [p for p in path.iterdir() if p.is_file()]
        elif path.suffix == ".md":
            waiting += links(path, text)
        files.append(File.generated(config, place(path), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links to files outside docs/."""
    name = page.file.src_uri
    if not name.startswith("repository/"):
        return rewritten(DOCS / name, markdown)
    source = ROOT / name.removeprefix("repository/")
    if source.name == "index.md" and source.parent.is_dir():  # a listing
        listed = source.parent

        def change(match: re.Match[str]) -> str:
            return match[1] + Path(place(listed / match[2])).name + match[3]

        return LINK.sub(change, markdown)
    return rewritten(source, markdown) if source.exists() else markdown
