"""The commands of the start page, one after the other, with a tiny model."""

import re
import shlex

from tests.helpers import ROOT

from weighted_mtp.cli.main import main

SMALL = {
    "train": "--set training.steps=2 --set training.save_every=2 --set training.validate_every=2 "
    "--set training.batch_size=4 --set training.micro_batch_size=4 --set data.max_length=160 "
    "--set model.architecture.dim=32 --set model.architecture.n_layers=5 "
    "--set model.architecture.n_heads=2 --set data.micro.n_problems=8 "
    "--set data.micro.n_validation=4 --set runtime.device=cpu --set runtime.threads=1",
    "evaluate": "--n-problems 1 --max-new-tokens 4 --device cpu",
    "report": "",
    "generate": "--max-new-tokens 4 --device cpu",
}


def test_the_start_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    block = re.search(r"```console\n(.*?)```", page, re.DOTALL)[1]
    commands = [shlex.split(line) for line in block.splitlines()]
    assert [words[1] for words in commands] == list(SMALL)
    for words in commands:
        assert words[0] == "weighted-mtp"
        assert main([*words[1:], *SMALL[words[1]].split()]) == 0, words
    assert (tmp_path / "runs/first/report.html").is_file()
    assert (tmp_path / "runs/first/config.yaml").is_file()
