"""`weighted-mtp serve`: texts equal offline decoding, the protocol, what is
refused, and who leaves."""

from __future__ import annotations

import importlib.util
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.helpers import tiny_args, tiny_model
from tests.unit.test_chat_template import chat_model, say

from weighted_mtp.cli.main import main
from weighted_mtp.data.tokens.tokenizers import ByteTokenizer
from weighted_mtp.decoding import Sampling, Speculation, complete
from weighted_mtp.models.meta_mtp.checkpoints import save_native
from weighted_mtp.pipelines.evaluating.writer import ModelWriter

pytest.importorskip("fastapi")
import httpx
import uvicorn
from fastapi.testclient import TestClient

from weighted_mtp.serving.app import make_app
from weighted_mtp.serving.guard import LOOPBACK, Guard
from weighted_mtp.serving.service import Limits, Service

LIMITS = Limits(max_rows=4, max_length=120, max_queue=80, max_body=20_000)
TEXTS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def writer(model) -> ModelWriter:
    return ModelWriter(model, "cpu", Sampling(), 1, None, Speculation(adaptive=True))


@contextmanager
def client_of(writer, limits=LIMITS, key=None, hosts=LOOPBACK):
    service = Service(writer, "tiny", limits)
    app = Guard(make_app(service), service.metrics, key, hosts)
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        client.service = service
        yield client


@pytest.fixture(scope="module")
def client(writer):
    with client_of(writer) as client:
        yield client


def offline(writer, ids, count, sampling=None, seeds=(0,), stops=(), chat=False):
    """The texts by `complete`, each row alone."""
    stopping = writer.stopping(stops, count, chat)
    return [
        complete(writer.model, [ids], stopping, sampling, writer.speculation, [seed], True)[0][0]
        for seed in seeds
    ]


def events(response) -> list[dict]:
    """The chunks of a stream, which must end as it should."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines]


# --- texts ---------------------------------------------------------------------------------------


def test_completions_equal_offline_decoding(client, writer):
    asked = {"model": "tiny", "prompt": "Hello", "max_tokens": 20, "temperature": 0}
    body = client.post(TEXTS, json=asked).json()
    (wanted,) = offline(writer, writer.encode("Hello"), 20)
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == (wanted.text, "length")
    assert choice["logprobs"] is None
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25}
    assert (body["object"], body["model"]) == ("text_completion", "tiny")


def test_several_prompts_and_texts_are_drawn_by_seed(client, writer):
    prompts = ["Hello", "You"]
    asked = {"prompt": prompts, "n": 2, "seed": 9, "temperature": 0.9, "top_p": 0.9}
    first, again = (client.post(TEXTS, json=asked).json()["choices"] for _ in range(2))
    assert first == again
    sampling, wanted = Sampling(0.9, 0.9, 9), []
    for number, prompt in enumerate(prompts):
        seeds = (2 * number, 2 * number + 1)
        wanted += offline(writer, writer.encode(prompt), 16, sampling, seeds)
    assert [choice["text"] for choice in first] == [one.text for one in wanted]
    assert [choice["index"] for choice in first] == [0, 1, 2, 3]
    ids = [writer.encode(prompt) for prompt in prompts]
    assert client.post(TEXTS, json={**asked, "prompt": ids}).json()["choices"] == first
    unseeded = {"prompt": "Hello", "max_tokens": 40}
    texts = {client.post(TEXTS, json=unseeded).json()["choices"][0]["text"] for _ in range(2)}
    assert len(texts) == 2


def test_a_stop_string_ends_a_text(client, writer):
    (whole,) = offline(writer, writer.encode("Hello"), 30)
    stop = next(char for char in whole.text[5:] if char.isascii() and char.isprintable())
    (wanted,) = offline(writer, writer.encode("Hello"), 30, stops=(stop,))
    asked = {"prompt": "Hello", "max_tokens": 30, "temperature": 0, "stop": stop}
    (choice,) = client.post(TEXTS, json=asked).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (wanted.text, "stop")
    assert choice["text"] == whole.text[: whole.text.index(stop)]
    streamed = events(client.post(TEXTS, json={**asked, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == wanted.text
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_chat_is_answered_whole_and_streamed(client, writer):
    messages = say("ask", system="Be brief.")
    ids = writer.encode(messages)
    wanted = offline(writer, ids, 24, Sampling(0.7, seed=4), (0, 1), chat=True)
    asked = {"messages": messages, "max_completion_tokens": 24, "temperature": 0.7, "seed": 4}
    asked["n"] = 2
    body = client.post(CHAT, json=asked).json()
    said = [choice["message"] for choice in body["choices"]]
    assert [one["content"] for one in said] == [one.text for one in wanted]
    assert {one["role"] for one in said} == {"assistant"}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(client.post(CHAT, json={**asked, **options}))
    assert last["choices"] == []
    assert last["usage"] == body["usage"]
    texts, finishes = ["", ""], [None, None]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        assert (chunk["object"], chunk["usage"]) == ("chat.completion.chunk", None)
        texts[choice["index"]] += choice["delta"].get("content", "")
        finishes[choice["index"]] = choice["finish_reason"]
    assert texts == [one.text for one in wanted]
    assert finishes == [choice["finish_reason"] for choice in body["choices"]]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "sk"}]
    apart = {**asked, "messages": [{"role": "developer", "content": "Be brief."}]}
    apart["messages"].append({"role": "user", "content": parts})
    assert client.post(CHAT, json=apart).json()["choices"] == body["choices"]


def test_a_chat_without_a_limit_fills_the_row(client):
    asked = {"messages": say("ask"), "temperature": 0, "logit_bias": {}, "user": "me"}
    body = client.post(CHAT, json=asked).json()
    (choice,) = body["choices"]
    assert choice["finish_reason"] in ("length", "stop")
    if choice["finish_reason"] == "length":
        assert body["usage"]["total_tokens"] == LIMITS.max_length


def test_logprobs_are_those_of_offline_decoding(client, writer):
    (wanted,) = offline(writer, writer.encode("Hello"), 12)
    asked = {"prompt": "Hello", "max_tokens": 12, "temperature": 0, "logprobs": 2}
    found = client.post(TEXTS, json=asked).json()["choices"][0]["logprobs"]
    assert found["token_logprobs"] == pytest.approx(wanted.logprobs, abs=1e-4)
    assert [len(found[name]) for name in found] == [12] * 4
    for token, score, top in zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        assert max(top.values()) == pytest.approx(score, abs=1e-4)
        assert token in top
    chunks = events(client.post(TEXTS, json={**asked, "stream": True}))
    tokens = [t for c in chunks for t in (c["choices"][0]["logprobs"] or {"tokens": []})["tokens"]]
    assert tokens == found["tokens"]

    chat = {"messages": say("ask"), "max_tokens": 5, "logprobs": True, "top_logprobs": 3}
    content = client.post(CHAT, json=chat).json()["choices"][0]["logprobs"]["content"]
    assert 0 < len(content) <= 5
    for token in content:
        assert len(token["top_logprobs"]) == 3
        assert token["bytes"] in (None, list(token["token"].encode()))


# --- what is refused -----------------------------------------------------------------------------

HELLO = {"prompt": "Hello"}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (TEXTS, [], 400, "JSON object"),
        (TEXTS, {}, 400, "prompt must be"),
        (TEXTS, {"prompt": ""}, 400, "the prompt is empty"),
        (TEXTS, {"prompt": []}, 400, "prompt must be"),
        (TEXTS, {"prompt": [1, 2.5]}, 400, "prompt must be"),
        (TEXTS, {"prompt": [10**9]}, 400, "not in the vocabulary"),
        (TEXTS, {"prompt": [-1]}, 400, "not in the vocabulary"),
        (TEXTS, {"prompt": "\ud800"}, 400, "surrogate"),
        (TEXTS, {"prompt": "x" * 105}, 400, "105 tokens and 16 new ones exceed the 120"),
        (TEXTS, {"prompt": "x" * 200, "max_tokens": 1}, 400, "200 tokens"),
        (TEXTS, {**HELLO, "max_tokens": 0}, 400, "max_tokens must be a whole number"),
        (TEXTS, {**HELLO, "max_tokens": True}, 400, "max_tokens"),
        (TEXTS, {**HELLO, "model": "gpt"}, 404, "'gpt' is not served here; take 'tiny'"),
        (TEXTS, {**HELLO, "temperature": -1}, 400, "temperature must be 0"),
        (TEXTS, {**HELLO, "temperature": "hot"}, 400, "temperature must be a number"),
        (TEXTS, {**HELLO, "temperature": 10**400}, 400, "temperature must be a number"),
        (TEXTS, {**HELLO, "top_p": 0}, 400, "top_p"),
        (TEXTS, {**HELLO, "n": 129}, 400, "n must be a whole number from 1 to 128"),
        (TEXTS, {**HELLO, "n": 81}, 400, "81 texts are more than may wait"),
        (TEXTS, {**HELLO, "stop": [""]}, 400, "stop must be"),
        (TEXTS, {**HELLO, "stop": ["x"] * 17}, 400, "stop must be"),
        (TEXTS, {**HELLO, "logprobs": 21}, 400, "logprobs must be"),
        (TEXTS, {**HELLO, "stream": 1}, 400, "stream must be true or false"),
        (TEXTS, {**HELLO, "stream_options": {"include_usage": True}}, 400, "stream: true"),
        (TEXTS, {**HELLO, "echo": True}, 400, "echo is not served"),
        (TEXTS, {**HELLO, "best_of": True}, 400, "best_of is not served"),
        (TEXTS, {**HELLO, "frequency_penalty": 0.5}, 400, "frequency_penalty is not served"),
        (TEXTS, {**HELLO, "temprature": 1}, 400, "did you mean temperature?"),
        (TEXTS, {**HELLO, "\ud800": 1}, 400, "unknown field"),
        (CHAT, {}, 400, "messages must be"),
        (CHAT, {"messages": say("ask"), "prompt": "x"}, 400, "unknown field 'prompt'"),
        (CHAT, {"messages": ["hi"]}, 400, "messages[0]: a message is an object"),
        (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, 400, "role"),
        (CHAT, {"messages": [{"role": "user"}]}, 400, "content must be a string"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text"),
        (CHAT, {"messages": say("ask"), "top_logprobs": 3}, 400, "needs logprobs: true"),
        (CHAT, {"messages": say("ask"), "tools": [{}]}, 400, "tools is not served"),
        (CHAT, {"messages": say("x" * 200)}, 400, "messages: "),
    ],
)
def test_a_bad_request_is_one_json_error(client, path, body, status, words):
    headers = {"Content-Type": "application/json"}
    response = client.post(path, content=json.dumps(body), headers=headers)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert words in error["message"]
    assert "\n" not in error["message"]


def test_what_is_no_request_at_all(client):
    headers = {"Content-Type": "application/json"}
    for content, status, words in (
        (b"{", 400, "not valid JSON"),
        (b"\xff", 400, "not valid JSON"),
        (b"[" * 15_000, 400, ""),
        (b" " * 20_001, 413, "longer than 20000 bytes"),
        (iter([b" " * 15_000] * 2), 413, "longer than 20000 bytes"),
    ):
        response = client.post(TEXTS, content=content, headers=headers)
        assert response.status_code == status
        assert words in response.json()["error"]["message"]
    assert client.post(TEXTS, content=b"{}").status_code == 415
    assert client.get("/v1/nothing").json()["error"]["message"].startswith("GET /v1/nothing")
    assert client.get(TEXTS).status_code == 405


def test_a_model_without_a_chat_template_completes_only(tmp_path):
    save_native(tiny_model(tiny_args(vocab_size=259, max_seq_len=64)), tmp_path / "plain")
    ByteTokenizer().save(tmp_path / "plain" / "tokenizer")
    writer = ModelWriter(tmp_path / "plain", "cpu", Sampling(), 1)
    with client_of(writer, Limits(2, 60)) as client:
        answer = client.post(CHAT, json={"messages": say("ask")})
        assert answer.status_code == 400
        assert "no chat template" in answer.json()["error"]["message"]
        assert client.post(TEXTS, json=HELLO).status_code == 200


# --- access, figures -----------------------------------------------------------------------------


def test_the_key_opens_all_but_health(writer):
    with client_of(writer, key="sesame-open", hosts=None) as client:
        assert client.get("/health").json() == {"status": "ok"}
        for value in (None, "", "Bearer", "Bearer sesame", "sesame-open", "Bearer sesame-open2"):
            headers = {} if value is None else {"Authorization": value}
            for path in ("/v1/models", "/metrics", "/elsewhere"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
        headers = {"Authorization": "Bearer sesame-open"}
        assert client.get("/v1/models", headers=headers).json()["data"][0]["id"] == "tiny"


def test_the_model_is_listed(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny", LIMITS.max_length)
    assert client.get("/v1/models/tiny").json() == model
    assert client.get("/v1/models/other").status_code == 404


def test_another_name_does_not_lead_here(client):
    for host, status in (
        *(("evil.example", 403), ("evil.example:80", 403), ("", 403)),
        *(("localhost:80", 200), ("127.0.0.1", 200), ("[::1]:8000", 200)),
    ):
        assert client.get("/health", headers={"Host": host}).status_code == status


def test_metrics_are_prometheus_text(writer):
    with client_of(writer) as client:
        client.post(TEXTS, json={**HELLO, "max_tokens": 30, "temperature": 0})
        client.get("/v1/secret")
        answer = client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
        found = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
        report = client.service.engine.report
    for name, value in {
        "generated_tokens_total": 30,
        "prompt_tokens_total": 5,
        "texts_total": 1,
        "running_rows": 0,
        "queue_rows": 0,
        "forward_passes_total": report.forwards,
        'requests_total{path="/v1/completions",status="200"}': 1,
        'requests_total{path="other",status="404"}': 1,
        "text_seconds_count": 1,
        'text_seconds_bucket{le="+Inf"}': 1,
        'drafts_tested_total{head="2"}': report.tested[0],
        'drafts_accepted_total{head="3"}': report.accepted[1],
    }.items():
        assert found[f"weighted_mtp_{name}"] == value, name
    assert found["weighted_mtp_tokens_per_forward"] == pytest.approx(
        report.tokens_per_forward, abs=1e-5
    )


# --- under load ----------------------------------------------------------------------------------


def slowed(service, seconds: float):
    """Let every pass take longer."""
    step = service.engine._batch.step

    def slow():
        time.sleep(seconds)
        return step()

    service.engine._batch.step = slow


def test_time_that_is_over_and_a_full_queue(writer):
    limits = Limits(max_rows=1, max_length=120, max_queue=1, timeout=0.3)
    long = {"prompt": "Hello", "max_tokens": 100, "temperature": 0}
    with client_of(writer, limits) as client, ThreadPoolExecutor(2) as pool:
        slowed(client.service, 0.05)
        first = pool.submit(client.post, TEXTS, json=long)
        until(lambda: client.service.engine.running == 1)
        second = pool.submit(client.post, TEXTS, json=long)
        until(lambda: client.service.engine.waiting == 1)
        refused = client.post(TEXTS, json=long)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
        assert refused.headers["retry-after"] == "1"
        assert first.result().status_code == 504
        assert "before its end" in first.result().json()["error"]["message"]
        assert second.result().status_code == 504
        stream = client.post(TEXTS, json={**long, "stream": True}).text
        assert "time was over" in stream.split("data: ")[-1]
        until(lambda: client.service.engine.running == 0)  # its row goes with the next pass


def test_a_failed_pass_loses_its_texts_and_no_more(writer):
    with client_of(writer) as client:
        batch = client.service.engine._batch
        for name in ("step", "admit"):
            good = getattr(batch, name)

            def fail(*args, name=name, good=good):
                setattr(batch, name, good)
                raise RuntimeError("a bad day")

            wanted = client.post(TEXTS, json={**HELLO, "temperature": 0}).json()["choices"]
            setattr(batch, name, fail)
            answer = client.post(TEXTS, json=HELLO)
            assert answer.status_code == 500
            assert "a bad day" in answer.json()["error"]["message"]
            again = client.post(TEXTS, json={**HELLO, "temperature": 0}).json()["choices"]
            assert again == wanted
        assert "failures_total 2" in client.service.metrics_text()


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


@contextmanager
def real_server(writer, limits=LIMITS):
    """A server on a free port of this machine: its URL and service."""
    service = Service(writer, "tiny", limits)
    app = Guard(make_app(service), service.metrics, None, LOOPBACK)
    config = uvicorn.Config(app, log_config=None, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def test_forty_at_once_get_the_texts_of_offline_decoding(writer):
    def ask(number: int) -> tuple[str, str, str]:
        prompt, count, greedy = "abc" * (1 + number % 9), 5 + number % 23, number % 2 == 0
        asked = {"prompt": prompt, "max_tokens": count, "seed": number, "temperature": 1 - greedy}
        asked["stream"] = number % 3 == 0
        with httpx.Client(timeout=60) as client:
            answer = client.post(url + TEXTS, json=asked)
        chunks = events(answer) if asked["stream"] else [answer.json()]
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        sampling = Sampling(float(1 - greedy), seed=number)
        (wanted,) = offline(writer, writer.encode(prompt), count, sampling)
        return prompt, text, wanted.text

    with real_server(writer) as (url, service), ThreadPoolExecutor(40) as pool:
        for prompt, text, wanted in pool.map(ask, range(40)):
            assert text == wanted, prompt
        until(lambda: service.engine.running == service.engine.waiting == 0)
        assert "weighted_mtp_texts_total 40" in service.metrics_text()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(writer, stream):
    asked = {"prompt": "Hello", "max_tokens": 100, "temperature": 0, "stream": stream}
    with real_server(writer, Limits(max_rows=1, max_length=120)) as (url, service):
        slowed(service, 0.05)
        with httpx.Client() as client:
            request = client.build_request("POST", url + TEXTS, json=asked)
            if stream:
                answer = client.send(request, stream=True)
                next(answer.iter_lines())
                answer.close()
            else:
                with pytest.raises(httpx.TimeoutException):
                    client.post(url + TEXTS, json=asked, timeout=0.3)
        until(lambda: service.engine.running == 0)
        assert "weighted_mtp_cancelled_total 1" in service.metrics_text()
        assert "weighted_mtp_texts_total 0" in service.metrics_text()


# --- start ---------------------------------------------------------------------------------------


def test_a_start_that_cannot_work_is_one_line(model, tmp_path, capsys, monkeypatch):
    short = tmp_path / "key"
    short.write_text("secret\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, words in (
            (["--port", port], "cannot be listened on"),
            (["--port", "99999"], "must be from 0 to 65535"),
            (["--host", "nowhere.invalid"], "opens the model to a network"),
            (["--host", "0.0.0.0"], "set WEIGHTED_MTP_API_KEY or --api-key-file"),
            (["--api-key-file", str(short)], "8 characters"),
            (["--api-key-file", str(tmp_path / "none")], "cannot be read"),
            (["--port", "0", "--max-length", "400"], "must be from 2 to 318"),
            (["--max-rows", "0"], "--max-rows must be above 0"),
            (["--timeout", "nan"], "--timeout must be above 0"),
            (["--speculate", "9", "--port", "0"], "the model has 3"),
        ):
            assert main(["serve", str(model), "--device", "cpu", *options]) == 2
            assert words in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setenv("WEIGHTED_MTP_API_KEY", "sesame-open")
    assert main(["serve", str(model), "--no-api-key"]) == 2
    assert "contradicts WEIGHTED_MTP_API_KEY" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "missing")]) == 2
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "fastapi" else found(name)
    )
    assert main(["serve", str(model)]) == 2
    assert "pip install 'weighted-mtp[serve]'" in capsys.readouterr().err.splitlines()[-1]
