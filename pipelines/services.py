"""`make services`: this checkout's MLflow and Prefect servers on one machine, SQLite behind both, until Ctrl-C.

Hosts and ports come from the servers' own variables: `MLFLOW_HOST`, `MLFLOW_PORT`, `PREFECT_SERVER_API_HOST`,
`PREFECT_SERVER_API_PORT`. The default is loopback; neither server asks for a password (deploy/ has those that do).
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ikddit.errors import IkdditError
from ikddit.params import load_params
from ikddit.registry.store import locate_store, open_store
from ikddit.registry.ui import address, check_port, ui_command
from pipelines import PREFECT_DEFAULTS
from pipelines.process import stop_group

READY_S = 180.0
"""The first start creates two databases, on a busy machine."""
POLL_S = 0.3
PORTS = {"MLflow": "MLFLOW_PORT", "Prefect": "PREFECT_SERVER_API_PORT"}
CORS = "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The servers are on this machine: a proxy of the environment (`http_proxy`) knows nothing of them."""


@dataclass(frozen=True)
class Service:
    """One server: how to start it and how to know that it is there."""

    name: str
    command: tuple[str, ...]
    env: dict[str, str]
    host: str
    port: int
    health: str
    """Path that answers 200 when the server is up."""

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        return address(self.host, self.port)

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            return bool(NO_PROXY.open(self.url + self.health, timeout=2).status == 200)
        except OSError:
            return False


def make_services(root: Path, env: Mapping[str, str] = os.environ) -> tuple[Service, Service]:
    """Describe the MLflow and Prefect servers of a checkout; MLflow's database is created if it is not there.

    Raises:
        ParamsError: params.yaml is wrong.
        RegistryError: `MLFLOW_TRACKING_URI` names a server, which runs elsewhere.
        IkdditError: a port is no number.
    """
    store = locate_store(env, root)
    host, port = env.get("MLFLOW_HOST", "127.0.0.1"), _port(env, "MLflow", 5000)
    command, more = ui_command(store, host, port)
    if store.database is not None and not store.database.exists():
        open_store(store, load_params(root / "params.yaml").register_.experiment)
    mlflow = Service("MLflow", tuple(command), more, host, port, "/health")
    host = env.get("PREFECT_SERVER_API_HOST", "127.0.0.1")
    port = _port(env, "Prefect", 4200)
    server = (sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port))
    prefect = Service("Prefect", server, {}, host, port, "/api/health")
    home = {name: value for name, value in PREFECT_DEFAULTS.items() if name not in env}
    # Prefect asks nobody who they are, and by itself lets pages of any site call it. Its own is open by either name.
    own_pages = env.get(CORS, f"{prefect.url},http://localhost:{port}")
    # The page in the browser and the background services must find this very server.
    prefect.env.update(home | {"PREFECT_API_URL": f"{prefect.url}/api", CORS: own_pages})
    return mlflow, prefect


def _port(env: Mapping[str, str], service: str, default: int) -> int:
    text = env.get(PORTS[service], str(default))
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise IkdditError(f"{PORTS[service]}: {text!r} is no port; set 1 to 65535, or unset it for {default}")
    return int(text)


def run_services(services: Sequence[Service], folder: Path, say: Callable[[str], object]) -> None:
    """Start the servers, say where they are, and wait; whatever ends the wait stops both with their children.

    Args:
        services: from `make_services`.
        folder: for one log file per server.
        say: called with each line for the person who started this.

    Raises:
        IkdditError: a port is taken, a server did not come up, or one ended by itself.
    """
    for service in services:
        check_port(service.host, service.port, PORTS[service.name])
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        running: list[tuple[Service, subprocess.Popen[str], Path]] = []
        for service in services:
            log = folder / f"{service.name.lower()}.log"
            out = stack.enter_context(log.open("w"))
            process = subprocess.Popen(
                service.command,
                env=os.environ | service.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # workers of both servers stay in its process group
            )
            stack.callback(stop_group, process)
            running.append((service, process, log))
        deadline = time.monotonic() + READY_S
        for service, process, log in running:
            while not service.is_up():
                if process.poll() is not None or time.monotonic() > deadline:
                    why = (
                        "did not start" if process.poll() is None else f"ended with code {process.returncode}"
                    )
                    raise IkdditError(f"{service.name} {why}; the end of {log}:\n{_tail(log)}")
                time.sleep(POLL_S)
            say(f"{service.name:8} {service.url}   (log: {log})")
        prefect = next(service for service in services if service.name == "Prefect")
        say(f"flows are seen there with: export PREFECT_API_URL={prefect.url}/api")
        say("the schedule of params.yaml runs with: make schedule.   Ctrl-C stops both servers.")
        while True:
            for service, process, log in running:
                if process.poll() is not None:
                    code = process.returncode
                    raise IkdditError(
                        f"{service.name} ended with code {code}; the end of {log}:\n{_tail(log)}"
                    )
            time.sleep(POLL_S)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def main() -> None:
    """Run until SIGINT or SIGTERM."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # Set explicitly: a shell starts what it puts into the background with SIGINT ignored.
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)  # the terminal is gone
    root = locate_store().root
    try:
        run_services(make_services(root), root / ".ikddit" / "services", lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("both servers are stopped", flush=True)
    except IkdditError as error:
        raise SystemExit(f"services: {error}") from None


if __name__ == "__main__":
    main()
