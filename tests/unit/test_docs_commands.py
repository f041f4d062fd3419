"""Every command in the documentation is one that the program would take."""

import argparse
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from weighted_mtp.cli.main import COMMANDS, build_parser, main
from weighted_mtp.core.config.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
LAUNCHERS = ("weighted-mtp ", "torchrun ", "srun ")


def commands(text: str) -> list[str]:
    """Lines of code that start one of our programs, continued lines joined."""
    fenced = "\n".join(content for _, content in FENCE.findall(text))
    indented = re.sub(r"^(?! {4}).*$", "", FENCE.sub("", text), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", f"{fenced}\n{indented}").splitlines()
    found = (re.split(r" [#>]| \|\| ", line)[0].strip() for line in lines)
    return [line for line in found if line.startswith(LAUNCHERS) and "benchmarks/" not in line]


def ours(words: list[str]) -> list[str]:
    """What is left for our program; what stands before it is checked."""
    if words[0] == "srun":
        words = words[1:]
    words = [re.sub(r"\$\{?\w+\}?", "7", word) for word in words]
    if words[0] == "torchrun":
        given = get_args_parser().parse_args(words[1:])
        assert (given.module, given.training_script) == (True, "weighted_mtp"), words
        return given.training_script_args
    assert words[0] == "weighted-mtp", words
    return words[1:]


def check(words: list[str]) -> None:
    """The arguments parse, and so does the recipe that they make."""
    words = ours(words)
    name = next(word for word in words if word in COMMANDS)
    args = build_parser(name).parse_args(words)
    if name not in ("train", "plan"):
        return
    changes, preset = args.overrides, args.preset
    if "pretrain" not in (args.recipe, preset) and preset != "micro":  # what a run would have
        if not any("model.path=" in change for change in changes):
            changes = ["model.path=somewhere", *changes]
        if not any("data.train=" in change for change in changes):
            changes = ["data.train=rows.jsonl", *changes]
    load_recipe(args.recipe or "baseline", preset, changes)


def blocks() -> list[tuple[str, str, str]]:
    return [
        (page.name, language, content)
        for page in PAGES
        for language, content in FENCE.findall(page.read_text(encoding="utf-8"))
    ]


CASES = [
    pytest.param(command, id=f"{page.name}: {command[:60]}")
    for page in PAGES
    for command in commands(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("command", CASES)
def test_a_command_of_the_docs_parses(command):
    check(shlex.split(command))


def test_there_are_such_commands():
    pages = {case.id.split(":")[0] for case in CASES}
    assert {"README.md", "distributed.md", "data.md", "decoding.md", "evaluation.md"} <= pages


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_scripts_are_scripts():
    scripts = [content for _, language, content in blocks() if language == "bash"]
    assert scripts
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_manifests_start_a_training():
    manifests = [content for _, language, content in blocks() if language == "yaml"]
    jobs = [yaml.safe_load(content) for content in manifests if "kind: PyTorchJob" in content]
    assert jobs
    for job in jobs:
        for replica in job["spec"]["pytorchReplicaSpecs"].values():
            for container in replica["template"]["spec"]["containers"]:
                check([*container["command"], *container["args"]])


def test_settings_named_in_the_docs_exist():
    """`training.keep_last` in backticks: a page must not promise a key that is not there."""
    sections = load_recipe("verifiable", "micro").model_dump()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(
            r"`(?:--set )?((?:training|runtime|data|objective|model|tokenizer)\.[a-z_.0-9]+)", text
        )
        for key in named:
            if key.endswith((".json", ".safetensors", "tokenizer.model")):  # names of files
                continue
            found = sections
            for part in key.rstrip(".").split("."):
                if found is None:  # an optional section
                    break
                assert isinstance(found, dict), (page.name, key)
                assert part in found, (page.name, key)
                found = found[part]


# --- `--help` ------------------------------------------------------------------------------------


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its sub-commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def named(name: str | None) -> Iterator[argparse.ArgumentParser]:
    """The parser of a command with its options, and those of its sub-commands."""
    every = list(parsers(build_parser(name)))
    stem = " ".join(filter(None, ("weighted-mtp", name)))
    return (p for p in every if p.prog == stem or (name and p.prog.startswith(f"{stem} ")))


HELPS = {p.prog: p for name in [None, *COMMANDS] for p in named(name)}


@pytest.mark.parametrize("prog", HELPS)
def test_every_help_ends_with_an_example_that_is_true(prog):
    lines = HELPS[prog].format_help().rstrip().splitlines()
    assert lines[-2] == "example:"
    assert lines[-1].strip().startswith(prog)
    check(shlex.split(lines[-1]))


@pytest.mark.parametrize("prog", HELPS)
def test_every_option_has_a_help_text(prog):
    for action in HELPS[prog]._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help, action.option_strings or action.dest
            assert not re.search(r"\b(anew|on line|folder|so many)\b", action.help)


@pytest.mark.parametrize("words", [("GPU",), ("HTML",)])
def test_summaries_keep_their_capitals(words, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in words)
    described = "".join(p.description for p in HELPS.values())
    assert all(word in described and word.lower() + " " not in described for word in words)
