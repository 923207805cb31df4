"""The `ikddit` command: a thin Typer layer; each command imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="ikddit",
    help="Overlay maps from the previous layer's map, equipment logs and ids.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _main() -> None:
    from ikddit.console import configure_logging

    configure_logging()


def main() -> None:
    """Entry point: a typed error becomes one plain message and exit code 1."""
    from ikddit.errors import IkdditError

    try:
        app()
    except IkdditError as error:
        typer.secho(f"{type(error).__name__}: {error}", err=True, fg=typer.colors.RED)
        raise SystemExit(1) from None


# Commands, one block each --------------------------------------------------------------------------------
