"""What stands beside the code agrees with it: versions, pins, workflows."""

import re
from pathlib import Path

import pytest
import yaml

import weighted_mtp

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_one_version_everywhere():
    version = weighted_mtp.__version__
    assert f'\nversion = "{version}"\n' in PROJECT
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## (\d\S+) - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    assert not released or released[0] == version


def test_hooks_have_the_pinned_ruff():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    found = set(re.findall(r"ruff==[\d.]+", hooks))
    assert len(found) == 1
    assert found <= set(pins)


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_forms_and_workflows_are_yaml(path):
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_workflow_runs_what_is_there():
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert {"test", "python", "oldest", "import-only", "docs", "package"} <= set(jobs)
    pythons = jobs["python"]["strategy"]["matrix"]["python-version"]
    lowest = re.search(r'requires-python = ">=([\d.]+)"', PROJECT)[1]
    assert pythons == [lowest, "3.11", "3.12", "3.13"]
    for name in re.findall(r"tests/[\w/]+\.py|\.github/\w+\.py", text):
        assert (ROOT / name).exists(), name
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"run: make (\w+)", text)) <= set(targets)
    extras = set(re.findall(r"^(\w+) = \[", PROJECT.split("optional-dependencies]")[1], re.M))
    for group in re.findall(r"\.\[([\w,]+)\]", text):
        assert set(group.split(",")) <= extras
