"""MLflow's pages of a store: their address, or a server that shows them here."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

from harness.config import tracking_in
from harness.errors import UserError
from harness.measure.redaction import masked
from harness.signals import handled, interrupt, unless_ignored
from harness.tracking.address import sqlite_file, store_uri
from harness.tracking.connection import open_store
from harness.tracking.study import place_of

PORTS = 100
"""Number of ports that are tried, from the one asked for on."""
START_SECONDS = 120.0
"""Time for MLflow's server to answer."""
END_SECONDS = 5.0
"""Time between SIGTERM and SIGKILL for the server."""
ALLOWED = "MLFLOW_SERVER_ALLOWED_HOSTS"


def show(uri: str | None, study: str | None, host: str, port: int) -> int:
    """Prints the address of the store's pages, or of a study's, and serves them until Ctrl-C.

    Returns the exit code. Raises UserError if the store, the study or a free port is not found.
    """
    store = store_uri(tracking_in(uri))
    file = sqlite_file(store)
    if file is not None and not os.path.exists(file):
        raise UserError(f"there is no MLflow store {file}; give another --uri")
    page = page_of(place_of(store, study), study) if study else ""
    if store.startswith("http"):
        print(f"{masked(store).rstrip('/')}/{page}", flush=True)
        return 0
    open_store(store, reads=True)
    return _serve(store, page, host, _free_port(host, port))


def page_of(experiment_id: str, study: str) -> str:
    """The page, relative to a server's address, that shows the study's runs in the experiment."""
    runs = f"#/experiments/{experiment_id}/runs"
    # MLflow's query language cannot escape a quote: such a study's page shows all runs.
    query = quote(f"tags.study = '{study}'")
    return runs if "'" in study else f"{runs}?searchFilter={query}"


def _free_port(host: str, asked: int) -> int:
    for port in range(asked, min(asked + PORTS, 1 << 16)):
        if not _free(host, port):
            continue
        if port != asked:
            print(f"port {asked} is in use; using {port}", file=sys.stderr, flush=True)
        return port
    raise UserError(f"no port from {asked} on is free on {host}; give another --port")


def _free(host: str, port: int) -> bool:
    try:
        (*_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"cannot serve at --host {host}: {error}; give another") from error
    family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError as error:
            raise UserError(f"port {port} needs more permissions; give another --port") from error
        except OSError:
            return False
    return True


def _serve(store: str, page: str, host: str, port: int) -> int:
    near = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    address = f"http://{f'[{near}]' if ':' in near else near}:{port}"
    with (
        suppress(KeyboardInterrupt),
        tempfile.TemporaryFile() as log,
        _server(store, host, port, log) as server,
    ):
        if _answers(server, f"{address}/health"):
            print(f"{address}/{page}\nPress Ctrl-C to stop", flush=True)
            server.wait()
        _report_end(log)
        return 1
    return 0


@contextmanager
def _server(
    store: str, host: str, port: int, log: IO[bytes]
) -> Iterator["subprocess.Popen[bytes]"]:
    """MLflow's server while the block runs, in its own session; no process of it is left behind."""
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1"]
    command += ["--host", host, "--port", str(port)]
    # The first variable keeps the server from starting seven more processes for jobs, which are not
    # used. The store's address is a variable because it may hold a password, and all users can read
    # command lines.
    own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": store}
    own[ALLOWED] = os.environ.get(ALLOWED) or _allowed(host)
    with handled([signal.SIGTERM, *unless_ignored(signal.SIGHUP)], interrupt):
        server = subprocess.Popen(
            command,
            env=os.environ | own,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield server
        finally:
            _end(server)


def _allowed(host: str) -> str:
    """Host names under which browsers may reach the server: MLflow's default and this machine's."""
    from mlflow.server.security_utils import get_default_allowed_hosts

    names = dict.fromkeys((host, socket.gethostname(), socket.getfqdn()))
    return ",".join((*get_default_allowed_hosts(), *(f"{name}:*" for name in names if name)))


def _answers(server: "subprocess.Popen[bytes]", address: str) -> bool:
    end = time.monotonic() + START_SECONDS
    # Ignores a proxy from the environment: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while server.poll() is None and time.monotonic() < end:
        with suppress(OSError), opener.open(address, timeout=5):
            return True
        time.sleep(0.2)
    return False


def _end(server: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(END_SECONDS)
        os.killpg(server.pid, signal.SIGKILL)  # processes of its session that are left
    server.wait()


def _report_end(log: IO[bytes]) -> None:
    log.seek(0)
    last = log.read().decode(errors="replace").strip().splitlines()[-5:]
    print("\n".join(["harness: MLflow's server has ended:", *last]), file=sys.stderr, flush=True)


def command_of(store: str, study: str) -> list[str]:
    """The command that shows the study's pages, as it can be typed in this folder."""
    beside = Path(sys.executable).parent / "harness"
    usual = store == store_uri(tracking_in(None))
    return [*_program(beside), "ui", "--study", study, *([] if usual else ["--uri", masked(store)])]


def _program(beside: Path) -> list[str]:
    """The harness's program: only its name if the shell finds it, else a path or `python -m`."""
    found = shutil.which("harness")
    if found and Path(found) == beside:
        return ["harness"]
    if not os.path.exists(beside):
        return [sys.executable, "-m", "harness"]
    return [os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)]
