"""Model cards of exports, and `weighted-mtp push` by the hub's own client to a local stand-in."""

import base64
import functools
import http.server
import json
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from tests.helpers import tiny_args, tiny_model

from weighted_mtp.cli.main import build_parser, main
from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.data.tokens.tokenizers import MICRO_VOCABULARY
from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model, save_native

ARGS = tiny_args(dim=16, n_layers=6, vocab_size=1024)
LAYOUTS = ("hf", "mtp_llama", "eagle3", "speculators")
FIGURES = {
    "head_loss": [0.3124, 0.36, 0.4],
    "head_accuracy": [0.894, 0.87, None],
    "head_acceptance": [1.0, 0.921, 0.89],
    "tokens_per_forward": 2.5,
}
TOKEN = "hf_not_to_be_told"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run as `train` leaves it, its records written by hand."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    checkpoint = folder / "checkpoints" / "step-00000020"
    checkpoint.mkdir(parents=True)
    changes = [
        "model.path=someone/base-model@main",
        "data.train=/home/someone/private/rows.jsonl",
        "training.learning_rate=0.5",
        "training.trackers=[tensorboard]",
        "training.remote=s3://bucket/place",
    ]
    recipe = load_recipe("baseline", overrides=changes)
    (folder / "config.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    records = [
        {"kind": "run", "step": 0, "version": "1.2.3"},
        {"kind": "train", "step": 1, "loss": 1.0},
        {"kind": "validation", "step": 20, **FIGURES},
        {"kind": "validation", "step": 30, "head_loss": [9.0, 9.0, 9.0]},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    state = {"step": 20, "sources": {"train": "ab12", "tokenizer": "bytes"}}
    (checkpoint / "trainer.json").write_text(json.dumps(state))
    save_native(
        tiny_model(ARGS), checkpoint / "model", tokenizer_files=sorted(MICRO_VOCABULARY.iterdir())
    )
    (checkpoint / "COMPLETE").touch()
    return folder


def card_of(source: Path, export: Path, *options: str) -> tuple[dict, str]:
    """Front matter and text of the card that `convert` writes."""
    assert main(["convert", str(source), str(export), *options]) == 0
    text = (export / "README.md").read_text(encoding="utf-8")
    match = re.match(r"---\n(.*?)\n---\n\n# ", text, re.DOTALL)
    assert match is not None
    return yaml.safe_load(match[1]), text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_card_says_what_is_there(run, tmp_path, layout):
    export = tmp_path / "an export"
    front, text = card_of(run, export, "--to", layout, "--license", "apache-2.0")
    code = layout != "mtp_llama"
    assert front == {
        "license": "apache-2.0",
        "base_model": "someone/base-model",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["multi-token-prediction", *(["custom_generate"] if code else [])],
    }
    assert (export / "custom_generate").is_dir() == code
    assert "2 more prediction heads" in text
    assert ("vllm serve" in text) == code
    assert ("--speculative-config" in text) == (layout == "eagle3")
    for language, block in re.findall(r"```(\w+)\n(.*?)\n```", text, re.DOTALL):
        if language == "python":
            compile(block, "card", "exec")
        if block.startswith("weighted-mtp"):
            words = shlex.split(block)[1:]
            build_parser(words[0]).parse_args(words)


def test_a_card_has_the_run_and_tells_no_secret(run, tmp_path):
    _, text = card_of(run, tmp_path / "e", "--to", "hf")
    assert "| 1 | 0.312 | 89.4% | – |" in text
    assert "| 3 | 0.400 | – | 89.0% |" in text
    assert "2.50 of 3" in text
    assert "at step 20" in text
    assert "Recipe `baseline` of weighted-mtp 1.2.3, checkpoint of step 20" in text
    assert "| train | `ab12` |" in text
    settings = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    assert settings["data.train"] == "rows.jsonl"
    assert settings["training.learning_rate"] == 0.5
    assert len(settings) < 6
    for secret in ("/home", "private", "someone/private", "s3:", "bucket", str(tmp_path), str(run)):
        assert secret not in text


def test_a_card_without_a_run(run, tmp_path):
    model = tmp_path / "m"
    save_native(tiny_model(tiny_args(n_future_tokens=1)), model)
    front, text = card_of(model, tmp_path / "e", "--to", "hf")
    assert "license" not in front
    assert "base_model" not in front
    assert front["tags"] == ["multi-token-prediction"]
    assert "next-token head alone" in text
    assert "trust_remote_code" not in text
    assert "## Training" not in text
    inner = run / "checkpoints" / "step-00000020" / "model"
    assert "checkpoint of step 20" in card_of(inner, tmp_path / "f", "--to", "hf")[1]


def test_a_run_with_damaged_records_is_exported_without_them(run, tmp_path):
    (run / "metrics.jsonl").rename(run / "kept")
    try:
        assert "recorded no validation" in card_of(run, tmp_path / "e", "--to", "hf")[1]
    finally:
        (run / "kept").rename(run / "metrics.jsonl")


def test_a_card_may_be_edited(run, tmp_path, capsys):
    export = tmp_path / "e"
    card_of(run, export, "--to", "hf")
    (export / "README.md").write_text("Mine.")
    assert main(["inspect", str(export), "--verify"]) == 0
    assert "without a sum: README.md" in capsys.readouterr().out
    load_meta_mtp_model(export, device="cpu", verify=True)


def test_licences_that_are_none(tmp_path, capsys):
    for options, message in (
        (["--to", "hf", "--license", "My own!"], "is not an identifier"),
        (["--to", "native", "--license", "mit"], "--to native does not have"),
    ):
        assert main(["convert", str(tmp_path), str(tmp_path / "e"), *options]) == 2
        assert message in capsys.readouterr().err


# --- push ----------------------------------------------------------------------------------------


class Hub:
    """A stand-in for the hub: keeps what it is asked, takes every file as a regular one.

    Attributes:
        asked: method, path and body of every request.
        status: of the answers.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.tokens: set[str | None] = set()
        self.status = 200
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *parts: object) -> None:
                """Say nothing."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                hub.asked.append(("POST", self.path, body))
                hub.tokens.add(self.headers.get("authorization"))
                answer = json.dumps(hub.answer(self.path, body)).encode()
                self.send_response(hub.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST  # noqa: N815 (the server's name)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        serve = functools.partial(self.server.serve_forever, poll_interval=0.02)
        threading.Thread(target=serve, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @staticmethod
    def answer(path: str, body: bytes) -> dict:
        page = "https://huggingface.co/me/m"
        if path.endswith("/create"):
            return {"url": page, "id": "me/m"}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return {
                "files": [
                    {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
                ]
            }
        if "/commit/" in path:
            return {"commitUrl": f"{page}/commit/abc", "commitOid": "abc"}
        return {"id": "me/m", "sha": "0" * 40, "errors": [], "warnings": []}

    def files(self) -> dict[str, bytes]:
        """The files in the commit, by name."""
        bodies = [body for _, path, body in self.asked if "/commit/" in path]
        lines = [json.loads(line) for body in bodies for line in body.splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        return {file["path"]: base64.b64decode(file["content"]) for file in files}


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    found = Hub()
    client = functools.partial(huggingface_hub.HfApi, endpoint=found.address)
    monkeypatch.setattr(huggingface_hub, "HfApi", client)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def export(run, tmp_path, capsys) -> Path:
    card_of(run, tmp_path / "e", "--to", "hf", "--license", "mit")
    capsys.readouterr()
    return tmp_path / "e"


def test_push_uploads_the_export_and_nothing_beside_it(hub, export, capsys):
    (export / ".env").write_text("SECRET=1")
    (export / "LICENSE").write_text("Do as you like.")
    words = ["push", str(export), "me/m", "--private", "--revision", "next"]
    assert main(words) == 0
    there = {p.relative_to(export).as_posix() for p in export.rglob("*") if p.is_file()}
    assert hub.files().keys() == there - {".env"}
    assert {"README.md", "LICENSE", "mtp/sums.json", "modeling_mtp.py"} < hub.files().keys()
    created = json.loads(next(b for _, path, b in hub.asked if path.endswith("/create")))
    assert (created["organization"], created["name"]) == ("me", "m")
    assert created.get("private") or created.get("visibility") == "private"
    assert any(path.endswith("/commit/next") for _, path, _ in hub.asked)
    assert hub.tokens == {f"Bearer {TOKEN}"}
    said = capsys.readouterr()
    assert "uploaded to https://huggingface.co/me/m/commit/abc" in said.out
    assert TOKEN not in said.out + said.err
    assert all(TOKEN.encode() not in body for _, _, body in hub.asked)


@pytest.mark.parametrize("status", [401, 403, 500])
def test_the_hub_may_refuse(hub, export, capsys, monkeypatch, status):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again
    hub.status = status
    assert main(["push", str(export), "me/m"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "hf auth login" in lines[-1] or status == 500
    assert lines[-1].startswith("error: me/m: ")
    assert TOKEN not in "".join(lines)
    assert not hub.files()


def test_what_is_not_pushed(hub, run, export, tmp_path, capsys):
    def refused(directory: Path, repository: str = "me/m") -> str:
        assert main(["push", str(directory), repository]) == 2
        return capsys.readouterr().err

    assert "give ORG/NAME" in refused(export, "name")
    assert "convert" in refused(run / "checkpoints" / "step-00000020" / "model")
    assert "is not an export" in refused(tmp_path / "none")
    card = export / "README.md"
    text = card.read_text()
    for changed, message in (
        (text.replace("license: mit\n", ""), "names no licence"),
        ("# No front matter\n", "names no licence"),
        ("---\na: [\n---\n", "is not YAML"),
    ):
        card.write_text(changed)
        assert message in refused(export)
    card.unlink()
    assert "needs a model card" in refused(export)
    card.write_text(text)
    weights = export / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert "SHA-256" in refused(export)
    assert hub.asked == []


@pytest.mark.parametrize("form", ["eagle3", "speculators"])
def test_push_leaves_out_the_path_of_this_machine(hub, run, tmp_path, form):
    card_of(run, tmp_path / "e", "--to", form, "--license", "mit")
    assert str(tmp_path) in (tmp_path / "e" / form / "README.md").read_text()
    assert main(["push", str(tmp_path / "e"), "me/m"]) == 0
    for name, content in hub.files().items():
        assert str(tmp_path).encode() not in content
        target = tmp_path / "there" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    assert main(["inspect", str(tmp_path / "there"), "--verify"]) == 0
    if form == "speculators":
        fields = json.loads(hub.files()["speculators/config.json"])
        assert fields["speculators_config"]["verifier"]["name_or_path"] == "me/m"
