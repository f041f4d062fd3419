"""The pages hold together: what they name exists, and the site has a place for each."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import weighted_mtp as wm

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def slugs(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    plain = (re.sub(r"\]\([^)]*\)", "", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\s-]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), target
        if anchor and found.suffix == ".md":
            assert anchor in slugs(found.read_text(encoding="utf-8")), target


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = re.findall(r"[\w/.-]+\.md", str(config["nav"]))
    written = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert written == {name for name in named if not name.startswith("repository/")}
    assert len(named) == len(set(named))
    assert config["theme"]["font"] is False
    assert not re.search(r"https?://", (ROOT / "mkdocs.yml").read_text())


def test_every_test_that_a_page_names_exists():
    """docs/asked-elsewhere.md and the concepts say by which test a claim is held."""
    named = {
        (page.name, *found)
        for page in PAGES
        for found in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text("utf-8"))
    }
    assert sum(page == "asked-elsewhere.md" for page, *_ in named) > 30
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for _, path, _ in named}
    for page, path, name in named:
        assert not name or f"\ndef {name}(" in texts[path], (page, path, name)


def test_every_public_issue_has_its_test():
    rows = (DOCS / "asked-elsewhere.md").read_text(encoding="utf-8").splitlines()
    issues = [row for row in rows if re.search(r"[\w-]+#\d+", row)]
    assert len(issues) >= 12
    assert all("::test_" in row for row in issues)


def test_the_pages_of_the_api_have_every_public_name():
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    grouped = " ".join(hooks.GROUPS.values()).split()
    assert sorted(grouped) == sorted(wm.__all__)
    written = "".join(hooks.api_pages().values())
    for name in wm.__all__:
        assert re.search(rf"^::: weighted_mtp\.[\w.]+\.{name}$", written, re.MULTILINE), name


def test_the_readme_is_short_and_the_concepts_are():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150
    for page in (DOCS / "concepts").iterdir():
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 120
