"""Opening, filtering and drawing from millions of rows, against reading them as JSON.

    python benchmarks/data_at_scale.py [--rows 3700000] [--runs 3] [--dir DIR] [--keep]
        [--out benchmarks/results/data_at_scale.json]

Rows of CodeContests' shape and number, written by this script: 13,000 problems, several hundred
solutions each, right and wrong, a category letter and a Codeforces rating. Measured:

    convert     the first `open_rows`: JSONL to Arrow tables
    draw        `open_rows`, correct rows of categories A–C, 200,000 of them at random
    fetch-1000  draw, and the text of the first 1,000 drawn rows
    fetch-all   draw, and the text of all drawn rows
    peer        the same draw from a JSON list with one small object a row, then a scan of the JSONL
                file that parses the drawn lines (and stops after the last)
    access      one row at a time near 1 %, 50 % and 99 % of the table
    draw-cold   draw, the table's files dropped from the page cache before

Method: every measurement is a fresh process, in turn (A B C … A B C …), and its time is the whole
process, imports included; medians over the runs (convert: once). Processor time stands beside it,
in case the machine is shared. All but draw-cold find the files in the page cache. Memory is sampled
every 10 ms over the process and its children: resident (RSS; pages shared by two processes count
twice), of it private (RssAnon; the rest is files mapped into memory, which the system may take back
at any time). A single process's own high-water mark counts where it is larger. All draws are
checked to be the same rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROBLEMS, DRAWN, FETCHED = 13_000, 200_000, 1_000
WANTED = ("A", "B", "C")
VARIANTS = ("draw", "fetch-1000", "fetch-all", "peer", "access", "draw-cold")
MB = 1e6


# --- the data ------------------------------------------------------------------------------------

PROSE = """
    given an array of integers find the largest sum that can be reached by choosing some of them so
    no two are next to each other print one number for every test the first line holds t query
    string tree vertex edge path cost minimum maximum modulo player turn move grid cell row
"""
WORDS = PROSE.split()
STATEMENTS = (
    "for i in range(n):\n    a[i] += {}\n",
    "while lo < hi:\n    mid = (lo + hi) // {}\n    lo = mid + 1\n",
    "ans = max(ans, best + {})\n",
    "if x % {} == 0:\n    print('YES')\nelse:\n    print('NO')\n",
    "n, m = map(int, input().split())  # {}\n",
    "dp = [[{}] * (m + 1) for _ in range(n + 1)]\n",
)


def problem(number: int) -> tuple[str, str, int]:
    """Instruction, category and rating; the same for every caller."""
    g = random.Random(number)
    text = " ".join(g.choices(WORDS, k=g.randrange(50, 110)))
    return text, g.choice("ABBCCCDDEFG"), g.choice((0, *range(800, 3500, 100)))


def rows_of(number: int, count: int) -> Iterator[dict[str, Any]]:
    """The solutions of one problem."""
    text, letter, rating = problem(number)
    g = random.Random(-number - 1)
    for i in range(count):
        code = "".join(x.format(g.randrange(1000)) for x in g.choices(STATEMENTS, k=8))
        yield {
            "instruction": text,
            "input": "",
            "output": code,
            "task_id": f"codecontests_{number:05d}",
            "is_correct": g.random() < 0.5,
            "metadata": {
                "source": "code_contests",
                "difficulty": letter,
                "cf_rating": rating,
                "solution": i,
                "has_tests": True,
            },
        }


def write_part(folder: Path, part: int, parts: int, total: int) -> None:
    """One part of the JSONL file and of the peer's list."""
    first, last = (PROBLEMS * i // parts for i in (part, part + 1))
    with (
        (folder / f"rows.{part}").open("w") as rows,
        (folder / f"small.{part}").open("w") as small,
    ):
        for number in range(first, last):
            count = total * (number + 1) // PROBLEMS - total * number // PROBLEMS
            for row in rows_of(number, count):
                rows.write(json.dumps(row) + "\n")
                kept = {
                    "is_correct": row["is_correct"],
                    "difficulty": row["metadata"]["difficulty"],
                    "task_id": row["task_id"],
                }
                small.write(json.dumps(kept) + ",\n")


def generate(folder: Path, total: int) -> None:
    """rows.jsonl and small.json, by two processes."""
    parts = 2
    running = [start(folder, "write", f"{i} {parts} {total}") for i in range(parts)]
    if any(process.wait() for process in running):
        sys.exit("the rows could not be written")
    with (folder / "rows.jsonl").open("wb") as whole:
        for i in range(parts):
            append(whole, folder / f"rows.{i}")
    with (folder / "small.json").open("wb") as whole:
        whole.write(b"[")
        for i in range(parts):
            append(whole, folder / f"small.{i}")
        whole.seek(-2, os.SEEK_END)  # the last comma
        whole.write(b"]\n")


def append(whole: Any, part: Path) -> None:
    with part.open("rb") as file:
        shutil.copyfileobj(file, whole, 1 << 20)
    part.unlink()


# --- what is measured, each in a process of its own ----------------------------------------------


def run_variant(name: str, folder: Path) -> dict[str, Any]:
    if name == "peer":
        return peer(folder)
    from weighted_mtp.data.rows.store import open_rows

    store = open_rows(folder / "rows.jsonl", folder / "cache")
    if name == "convert":
        return {"rows": len(store)}
    if name == "access":
        return access(store)
    import numpy as np

    m = store.metadata
    labels = [i for i, label in enumerate(m.difficulties) if label in WANTED]
    eligible = np.flatnonzero(m.is_correct & np.isin(m.difficulty, labels))
    drawn = np.random.default_rng(0).choice(eligible, min(DRAWN, len(eligible)), replace=False)
    count = {"fetch-1000": FETCHED, "fetch-all": len(drawn)}.get(name, 0)
    rows = [row for i in range(0, count, 1000) for row in store.rows(drawn[i : i + 1000])]
    return {"eligible": len(eligible), "drawn": digest(drawn), "fetched": len(rows)}


def peer(folder: Path) -> dict[str, Any]:
    """All small objects in memory, then the file from its top."""
    import numpy as np

    with (folder / "small.json").open() as file:
        small = json.load(file)
    eligible = [i for i, x in enumerate(small) if x["is_correct"] and x["difficulty"] in WANTED]
    drawn = np.random.default_rng(0).choice(eligible, min(DRAWN, len(eligible)), replace=False)
    wanted, rows = set(drawn.tolist()), []
    last = max(wanted)
    with (folder / "rows.jsonl").open() as file:
        for i, line in enumerate(file):
            if i in wanted:
                rows.append(json.loads(line))
            if i == last:
                break
    return {"eligible": len(eligible), "drawn": digest(drawn), "fetched": len(rows)}


def access(store: Any) -> dict[str, Any]:
    """Milliseconds for one row, median of 300 rows within half a percent of each place."""
    g = random.Random(0)
    store[0]  # opens the tables
    found = {}
    for percent in (1, 50, 99):
        centre, reach = len(store) * percent // 100, len(store) // 200
        times = []
        for _ in range(300):
            row = centre + g.randrange(-reach, reach)
            start_time = time.perf_counter()
            store[row]
            times.append(1e3 * (time.perf_counter() - start_time))
        found[f"{percent} %"] = statistics.median(times)
    return {"ms": found}


def digest(drawn: Any) -> str:
    return hashlib.sha256(drawn.astype("int64").tobytes()).hexdigest()[:16]


def high_water() -> int:
    """Bytes; unlike ru_maxrss it knows nothing of the process that started this one."""
    return 1024 * status(os.getpid())["VmHWM"]


# --- measuring -----------------------------------------------------------------------------------


def start(folder: Path, variant: str, argument: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--dir", str(folder), "--variant", variant]
    command += ["--argument", argument]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def status(pid: int) -> dict[str, int]:
    """The kB figures of /proc/PID/status."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return {}
    return {x.split(":")[0]: int(x.split()[1]) for x in lines if x.endswith(" kB")}


def measured(folder: Path, variant: str) -> dict[str, Any]:
    """Seconds, peaks and what the process itself says."""
    import psutil  # only here: the processes that are measured need not wait for it

    begin, spent = time.perf_counter(), children_seconds()
    process = start(folder, variant)
    peaks = {"VmRSS": 0, "RssAnon": 0, "processes": 0}
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            pids = [process.pid, *(child.pid for child in watched.children(recursive=True))]
        except psutil.NoSuchProcess:
            break
        found = [status(pid) for pid in pids]
        for name in ("VmRSS", "RssAnon"):
            peaks[name] = max(peaks[name], 1024 * sum(x.get(name, 0) for x in found))
        peaks["processes"] = max(peaks["processes"], len(pids))
        time.sleep(0.01)
    said, _ = process.communicate()
    seconds = time.perf_counter() - begin
    if process.returncode:
        sys.exit(f"{variant}: exit status {process.returncode}")
    result = json.loads(said)
    return {
        "seconds": seconds,
        "cpu_seconds": children_seconds() - spent,
        "resident_MB": max(peaks["VmRSS"], result.pop("high_water")) / MB,
        "private_MB": peaks["RssAnon"] / MB,
        "processes": peaks["processes"],
        **result,
    }


def children_seconds() -> float:
    """Processor time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def evict(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folder: Path) -> None:
    """Read the files of a folder, so that the page cache has them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def measure(folder: Path, runs: int) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {"convert": [measured(folder, "convert")]}
    print(results["convert"][0], file=sys.stderr)
    for run in range(runs):
        for variant in VARIANTS:
            (evict if variant == "draw-cold" else warm)(folder / "cache")
            results.setdefault(variant, []).append(measured(folder, variant))
            print(run, variant, results[variant][-1], file=sys.stderr)
    if len({x["drawn"] for xs in results.values() for x in xs if "drawn" in x}) != 1:
        sys.exit("the draws differ")
    return results


def median(results: list[dict[str, Any]], name: str) -> float:
    return statistics.median(x[name] for x in results)


def table(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        "| | s (median, least–most) | processor s | resident MB | of it private MB | processes "
        "| peer takes × the time | × processor | × resident | × private |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        times = [x["seconds"] for x in runs]
        cells = [f"{median(runs, 'seconds'):.2f} ({min(times):.2f}–{max(times):.2f})"]
        cells += [f"{median(runs, 'cpu_seconds'):.2f}"]
        cells += [f"{median(runs, x):.0f}" for x in ("resident_MB", "private_MB", "processes")]
        for key in ("seconds", "cpu_seconds", "resident_MB", "private_MB"):
            ratio = median(results["peer"], key) / median(runs, key)
            cells.append("" if name in ("convert", "access") else f"{ratio:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def summary(results: dict[str, list[dict[str, Any]]], head: dict[str, Any]) -> str:
    rate = head["rows"] / results["convert"][0]["seconds"]
    places = results["access"][0]["ms"]
    each = ", ".join(
        f"{place} {statistics.median(x['ms'][place] for x in results['access']):.3f}"
        for place in places
    )
    lines = [
        str(head),
        "",
        *table(results),
        "",
        f"convert: {rate:,.0f} rows/s, {head['jsonl_MB'] / results['convert'][0]['seconds']:.0f} "
        f"MB/s. {results['draw'][0]['eligible']:,} rows are eligible.",
        "",
        f"access: one row, milliseconds, by place in the table: {each}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3_700_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where the rows are written (several GB)")
    parser.add_argument("--keep", action="store_true", help="leave them there")
    parser.add_argument("--note", default="", help="a remark for the results")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--argument", default="", help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/data_at_scale.json"
    )
    args = parser.parse_args()
    if args.variant == "write":
        part, parts, total = map(int, args.argument.split())
        write_part(args.dir, part, parts, total)
        return
    if args.variant:
        result = run_variant(args.variant, args.dir)
        print(json.dumps({**result, "high_water": high_water()}))
        return
    folder = Path(tempfile.mkdtemp(prefix="data-at-scale-", dir=args.dir))
    try:
        begin = time.perf_counter()
        generate(folder, args.rows)
        print(f"rows written in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        results = measure(folder, args.runs)
        sizes = {p.name: p.stat().st_size / MB for p in folder.glob("*.json*")}
        tables = sum(p.stat().st_size for p in (folder / "cache").rglob("*.arrow")) / MB
    finally:
        if args.keep:
            print(f"kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    head = {
        "cores": os.cpu_count(),
        "cpu": cpu_name(),
        "rows": args.rows,
        "jsonl_MB": round(sizes["rows.jsonl"]),
        "small_json_MB": round(sizes["small.json"]),
        "arrow_MB": round(tables),
        **({"note": args.note} if args.note else {}),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"machine": head, "results": results}, indent=1) + "\n")
    text = summary(results, head)
    args.out.with_suffix(".md").write_text(text)
    print(text)


def cpu_name() -> str:
    """The processor, as Linux names it. (Importing train_step's would import torch.)"""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(": ")[1] for x in lines if x.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
