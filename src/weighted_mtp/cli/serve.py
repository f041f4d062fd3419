"""`weighted-mtp serve`: a model over HTTP, with OpenAI's protocol, for one machine."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from weighted_mtp.cli.decoding_options import (
    add_speculation_arguments,
    check_heads,
    speculation_option,
)
from weighted_mtp.core.errors import UserError
from weighted_mtp.core.files import given_path
from weighted_mtp.core.model_folder import find_model
from weighted_mtp.decoding import Sampling
from weighted_mtp.models.meta_mtp.checkpoints import inspect_checkpoint
from weighted_mtp.pipelines.checkpointing.model_start import warn_past_positions
from weighted_mtp.pipelines.evaluating.writer import ModelWriter, heads_in_use

if TYPE_CHECKING:
    from weighted_mtp.serving.service import Service

KEY_VARIABLE = "WEIGHTED_MTP_API_KEY"
_LONGEST_ROW = 2048
_PATIENCE = 30  # seconds that requests have to end in when the server is told to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `serve`."""
    parser.add_argument(
        "checkpoint", type=given_path, help="a run, a checkpoint, a model or ORG/NAME"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    parser.add_argument(
        "--name", help="what clients call the model (default: its directory's name)"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-rows", type=int, default=16, metavar="N", help="texts at a time (default 16)"
    )
    limits.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help=f"tokens of a prompt with its text (default {_LONGEST_ROW}, or the model's positions)",
    )
    limits.add_argument(
        "--max-queue", type=int, default=512, metavar="N", help="texts that wait (default 512)"
    )
    limits.add_argument(
        "--max-body",
        type=int,
        default=4 << 20,
        metavar="BYTES",
        help="of a request (default 4 MiB)",
    )
    limits.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="seconds a request (default 600)"
    )
    access = parser.add_argument_group("access")
    access.add_argument(
        "--api-key-file",
        type=given_path,
        metavar="FILE",
        help=f"ask for the key in this file (or in the environment: {KEY_VARIABLE})",
    )
    access.add_argument("--no-api-key", action="store_true", help="let a network ask without a key")
    decoding = parser.add_argument_group("decoding")
    add_speculation_arguments(decoding)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as stored)")
    parser.set_defaults(lossy_typical=False, tree=None)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal."""
    for module in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"serve needs {module}, which is not installed: pip install 'weighted-mtp[serve]'"
            )
    for name in ("max_rows", "max_queue", "max_body", "timeout"):
        if not getattr(args, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0")
    key = _key(args)
    model_dir = find_model(args.checkpoint)
    check_heads(args, args.checkpoint)
    name = args.name or _name_of(args.checkpoint, model_dir)
    _check_access(args.host, key, args.no_api_key)
    with _listening(args.host, args.port) as listener:  # before the weights are read
        service = load_service(args, name)
        _serve(service, listener, key, args.host)
    return 0


def load_service(args: argparse.Namespace, name: str) -> Service:
    """Load the model and make its cache.

    Raises:
        UserError: a limit does not fit the model.
    """
    from weighted_mtp.serving.service import Limits, Service

    speculation = speculation_option(args)
    shape = inspect_checkpoint(find_model(args.checkpoint)).args
    k = heads_in_use(speculation, shape.n_future_tokens)
    most = shape.max_positions - (k - 1)
    length = args.max_length or min(_LONGEST_ROW, shape.max_seq_len, most)
    if not 2 <= length <= most:
        raise UserError(
            f"--max-length {length}: must be from 2 to {most}, the model's positions"
            + (" less the drafts" if k > 1 else "")
        )
    warn_past_positions(length, shape, f"{args.checkpoint}: --max-length {length}")
    writer = ModelWriter(args.checkpoint, args.device, Sampling(), 1, args.dtype, speculation)
    limits = Limits(args.max_rows, length, args.max_queue, args.max_body, args.timeout)
    return Service(writer, name, limits)


def _serve(service: Service, listener: socket.socket, key: str | None, host: str) -> None:
    import uvicorn

    from weighted_mtp.serving.app import make_app
    from weighted_mtp.serving.guard import LOOPBACK, Guard

    hosts = LOOPBACK | {host.lower()} if _is_loopback(host) else None
    app = Guard(make_app(service), service.metrics, key, hosts)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=_PATIENCE,
    )
    shown = f"[{host}]" if ":" in host else host
    limits = service.limits
    print(
        f"serving {service.name} on http://{shown}:{listener.getsockname()[1]}/v1 "
        f"({limits.max_rows} texts of {limits.max_length} tokens at a time, cache "
        f"{service.cache_bytes / 2**20:.0f} MiB; {'with' if key else 'without'} an API key)",
        file=sys.stderr,
        flush=True,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _key(args: argparse.Namespace) -> str | None:
    """The API key, from a file or the environment: the command line is there for all to see."""
    path: Path | None = args.api_key_file
    if path is None:
        key, where = os.environ.get(KEY_VARIABLE), KEY_VARIABLE
    else:
        try:
            key, where = path.read_text(encoding="utf-8").strip(), f"--api-key-file {path}"
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-key-file {path}: cannot be read ({error})") from error
    if key is None:
        return None
    if args.no_api_key:
        raise UserError(f"--no-api-key contradicts {where}; remove one of them")
    if not re.fullmatch(r"[!-~]{8,}", key):
        raise UserError(
            f"{where}: a key has 8 characters or more, ASCII without spaces; for a good one: "
            "openssl rand -hex 32"
        )
    return key


def _check_access(host: str, key: str | None, no_key: bool) -> None:
    if key is None and not no_key and not _is_loopback(host):
        raise UserError(
            f"--host {host} opens the model to a network: set {KEY_VARIABLE} or --api-key-file, or "
            "say --no-api-key"
        )


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _name_of(given: Path, folder: Path) -> str:
    """What the model is called: as on the hub, or by its directory."""
    return given.as_posix() if not given.exists() else (given.resolve().name or folder.name)


def _listening(host: str, port: int) -> socket.socket:
    """A socket bound to the address.

    Raises:
        UserError: the address is taken, or not one of this machine.
    """
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port {port}: must be from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: not an address ({error})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UserError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror}); take another"
        ) from error
    return listener
