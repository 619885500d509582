"""`headway serve`: an emulated model behind HTTP, until Ctrl-C."""

from __future__ import annotations

import math
import socket
import sys

from simulator.commands.flags import SERVE
from simulator.commands.overrides import Values, document_of
from simulator.config import resolve_experiment
from simulator.errors import ConfigError
from simulator.search.command import HUGGING_FACE_IDS

BACKLOG = 2048  # connections not yet taken
SEND_BYTES = 1 << 17  # the system keeps for a client that reads slowly


def run(experiment: str | None, values: Values) -> None:
    """Listen, say where, and serve until SIGINT or SIGTERM.

    Raises:
        ConfigError: a flag or file that cannot be used, or the extra `serve` is not installed.
        OSError: the address cannot be listened on.
    """
    try:
        from simulator.serve.app import Limits, Server
        from simulator.serve.record import recording
        from simulator.serve.running import run_server
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"headway serve: expected the extra 'serve', pip install 'headway[serve]' ({error})"
        ) from None
    port = int(_number(values, "port", 8000, most=65535, whole=True))
    grace_s = int(_number(values, "grace", 30, most=3600, whole=True))
    speed = _number(values, "speed", 1.0, least=1e-3, most=1e3)
    limits = Limits(
        most_pending=int(_number(values, "max_pending", 4096, least=1, most=1e6, whole=True)),
        most_body_bytes=int(
            _number(values, "max_body", 4 << 20, least=1, most=1 << 30, whole=True)
        ),
        client_s=_number(values, "client_ms", 1, most=1000) / 1e3,
        patience_s=_number(values, "patience", 30, least=0.1, most=3600),
    )
    resolved = resolve_experiment(document_of(experiment, SERVE, values))
    name = resolved.model.name
    served: str = values["served_model_name"] or HUGGING_FACE_IDS.get(name, name)
    server = Server(resolved, tuple(dict.fromkeys((served, name))), speed, limits, _note)
    with (
        _listen(values["host"] or "127.0.0.1", port) as listener,
        recording(values["requests_out"]) as server.record,
    ):
        host, port = listener.getsockname()[:2]
        where = f"[{host}]" if ":" in host else host
        print(f"{served} on http://{where}:{port}/v1", flush=True)
        run_server(server, listener, grace_s)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # Connections inherit it; asyncio sets it on sockets of its own only. A token must not wait
        # for the acknowledgement of the one before, up to 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        return listener
    except OSError as error:
        text = error.strerror or str(error)
        raise ConfigError(f"--host, --port: cannot listen on {host}:{port} ({text})") from None


def _number(
    values: Values,
    name: str,
    default: float,
    *,
    least: float = 0,
    most: float = math.inf,
    whole: bool = False,
) -> float:
    """A flag's number, or its default."""
    text = values[name]
    if text is None:
        return default
    try:
        value = float(int(text) if whole else text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        kind = "an int" if whole else "a number"
        flag = "--" + name.replace("_", "-")
        raise ConfigError(f"{flag}: expected {kind} from {least:g} to {most:g} (got {text!r})")
    return value


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
