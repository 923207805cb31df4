"""What is in deploy/, read for the tests."""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)(?::?([-?])([^}]*))?\}")


def statements() -> list[str]:
    """The statements of postgres-init.sql."""
    text = re.sub(r"--.*", "", (DEPLOY / "postgres-init.sql").read_text())
    return [part.strip() for part in text.split(";") if part.strip()]


def env_file(path: Path) -> dict[str, str]:
    """NAME=value lines."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def interpolate(text: str, env: dict[str, str]) -> str:
    """Fill in `${NAME}`, `${NAME:-default}` and `${NAME:?}` as Docker Compose does."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        found = env.get(name, "")
        if not found and kind == "?":
            raise KeyError(name)
        return found or (rest if kind == "-" else "")

    return VARIABLE.sub(value, text)


def compose(env: dict[str, str]) -> Any:
    """deploy/compose.yaml with variables filled in and anchors merged."""
    return YAML(typ="safe").load(interpolate((DEPLOY / "compose.yaml").read_text(), env))
