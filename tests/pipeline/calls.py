"""Know whom Python processes call: every name looked up and every address connected to, children included.

An audit hook sees sockets of the standard library whoever opens them; a program not written in Python, or a library
with sockets of its own, it does not see. Calls that leave this machine are noted and refused.
"""

import os
from pathlib import Path

HOOK = """
import os, socket, sys
_NOTES = os.environ.get("NOTED_CALLS")
_HERE = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname()}
def _hook(event, args):
    if event in ("socket.connect", "socket.sendto"):
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in _HERE or host.startswith("127."):
        return
    with open(_NOTES, "a") as notes:
        notes.write(f"{event} {host} by {' '.join(sys.argv)[:120]}\\n")
    raise OSError(101, f"calls to {host} are refused here")
if _NOTES:
    sys.addaudithook(_hook)
"""
CI_NAMES = (
    "CI",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "JENKINS_URL",
    "TRAVIS",
    "TF_BUILD",
    "BUILDKITE",
    "PYTEST_CURRENT_TEST",
)
"""Packages keep quiet where they see one of these, whatever their settings."""
SWITCHES = ("DVC_", "MLFLOW_", "PREFECT_", "GX_", "HF_", "DO_NOT_TRACK")


def watched(env: dict[str, str], folder: Path) -> dict[str, str]:
    """The environment with the hook, and with nothing that says to be quiet: `calls(folder)` then tells."""
    (folder / "hook").mkdir(exist_ok=True)
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    kept = {k: v for k, v in env.items() if k not in CI_NAMES and not k.startswith(SWITCHES)}
    path = os.pathsep.join(filter(None, [str(folder / "hook"), env.get("PYTHONPATH")]))
    # Caches and settings of the person who runs the tests stay out of it.
    homes = {name: str(folder / "home") for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    return kept | homes | {"PYTHONPATH": path, "NOTED_CALLS": str(folder / "calls.txt"), "PATH": env["PATH"]}


def calls(folder: Path) -> list[str]:
    notes = folder / "calls.txt"
    return notes.read_text().splitlines() if notes.exists() else []


def quiet_settings(root: Path) -> dict[str, str]:
    """Variables of .env.defaults, as make exports them."""
    lines = [line.split("?=") for line in (root / ".env.defaults").read_text().splitlines() if "?=" in line]
    return {name.strip(): value.strip() for name, value in lines}
