"""The `ikddit` command: a thin Typer layer; each command imports what it needs when it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from ikddit.diffusion.plan import SamplingOptions

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


@app.command("ui")
def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open the MLflow UI on this checkout's store."""
    from ikddit.params import load_params
    from ikddit.registry.show import serve_ui
    from ikddit.registry.store import locate_store

    store = locate_store()
    serve_ui(store, load_params(store.root / "params.yaml").register_.experiment, host, port)


@app.command("models")
def models(
    name: Annotated[str | None, typer.Option(help="Registered model; default register.model_name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the registered versions with their aliases and metrics."""
    import dataclasses
    import json

    from ikddit.params import load_params
    from ikddit.registry.show import list_versions, print_versions
    from ikddit.registry.store import locate_store

    store = locate_store()
    settings = load_params(store.root / "params.yaml").register_
    rows = list_versions(store, name or settings.model_name, settings.experiment)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    elif rows:
        print_versions(rows, name or settings.model_name)
    else:
        typer.echo(f"no version of `{name or settings.model_name}` yet: run `make repro`")


@app.command("promote")
def promote_command(
    version: Annotated[int, typer.Argument(help="Version to make champion; `ikddit models` lists them.")],
    reason: Annotated[str, typer.Option(help="Why; it stays in the history.")],
    force: Annotated[bool, typer.Option(help="Promote although the gate says no; this is recorded.")] = False,
    name: Annotated[str | None, typer.Option(help="Registered model; default register.model_name.")] = None,
) -> None:
    """Make a version champion, if the promotion gate agrees: serving reads it from its next start."""
    from ikddit.params import load_params
    from ikddit.registry.promotion import promote
    from ikddit.registry.show import move_lines
    from ikddit.registry.store import locate_store

    store = locate_store()
    settings = load_params(store.root / "params.yaml").register_
    name = name or settings.model_name
    move = promote(
        version,
        reason,
        name=name,
        experiment=settings.experiment,
        store=store,
        limits=settings.promotion,
        force=force,
    )
    typer.echo(move_lines(name, move))


@app.command("rollback")
def rollback_command(
    reason: Annotated[str, typer.Option(help="Why; it stays in the history.")],
    name: Annotated[str | None, typer.Option(help="Registered model; default register.model_name.")] = None,
) -> None:
    """Give `champion` back to the champion before; again, to the one before that."""
    from ikddit.params import load_params
    from ikddit.registry.promotion import rollback
    from ikddit.registry.show import move_lines
    from ikddit.registry.store import locate_store

    store = locate_store()
    settings = load_params(store.root / "params.yaml").register_
    name = name or settings.model_name
    typer.echo(move_lines(name, rollback(reason, name=name, experiment=settings.experiment, store=store)))


@app.command("serve")
def serve_command(
    model: Annotated[str | None, typer.Option(help="Registry address; default the champion.")] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5001,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the forecast.")] = 1,
) -> None:
    """Answer requests over HTTP (MLflow's scoring server); docs/serving.md has an example."""
    from ikddit.params import load_params
    from ikddit.registry.serve import serve
    from ikddit.registry.store import locate_store

    store = locate_store()
    settings = load_params(store.root / "params.yaml").register_
    serve(store, model or f"models:/{settings.model_name}@champion", settings.experiment, host, port, threads)


@app.command("run")
def run(
    force: Annotated[bool, typer.Option(help="Run every stage, changed or not.")] = False,
) -> None:
    """Run the pipeline as a Prefect flow (pipelines/reproduce.py), stage by stage."""
    _become("reproduce", ["--force"] if force else [])


@app.command(
    "ablate",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def ablate(
    arguments: Annotated[list[str] | None, typer.Argument(help="As of `python -m pipelines.ablate`.")] = None,
) -> None:
    """Run sweeps as DVC experiments (pipelines/ablate.py); `ikddit ablate --help` names them."""
    _become("ablate", arguments or [])


def _become(flow: str, arguments: list[str]) -> None:
    """Go on as one of the checkout's flows.

    Raises:
        IkdditError: this is no checkout of the project.
    """
    import os
    import sys

    from ikddit.checkout import checkout_root
    from ikddit.errors import IkdditError

    root = checkout_root()
    if not (root / "pipelines" / f"{flow}.py").is_file():
        raise IkdditError(f"{root}: no pipelines/{flow}.py here; run from a checkout of ikddit")
    os.chdir(root)
    os.execv(sys.executable, [sys.executable, "-m", f"pipelines.{flow}", *arguments])


@app.command("validate")
def validate(
    records: Annotated[Path, typer.Argument(help="Folder that ingest wrote (part-*.parquet).")],
    out: Annotated[Path, typer.Option(help="Folder for validated/, quarantine/ and report/.")],
) -> None:
    """Judge records with the quality gate; bounds come from params.yaml here, else the defaults."""
    from ikddit.mpom.validate import validate as judge
    from ikddit.params import load_params, parse_params

    params = load_params() if Path("params.yaml").exists() else parse_params({})
    metrics = judge(records, out / "validated", out / "quarantine", out / "report", params.validate_)
    counts = f"{metrics['records']} records passed, {metrics['quarantined']} quarantined"
    typer.echo(f"{counts}: {out}/report/index.html")


@app.command("generate")
def generate(
    records: Annotated[
        str,
        typer.Argument(
            help="Folder of record Parquet files, as `ikddit ingest` writes, or of prepared splits."
        ),
    ],
    out: Annotated[str, typer.Option(help="Parquet file to write.")] = "forecast.parquet",
    model: Annotated[str, typer.Option(help="Model folder or registry address.")] = "models/student",
    n: Annotated[int, typer.Option(help="Samples per wafer.")] = 16,
    steps: Annotated[int, typer.Option(help="Denoiser evaluations per sample.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    limit_nm: Annotated[float, typer.Option(help="Specification limit of M3S, nm.")] = 8.0,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance weight; 1 or nothing is unguided, above 1 sharpens.")
    ] = None,
    guidance_kind: Annotated[str, typer.Option(help="Weak branch: cfg or path_drop.")] = "cfg",
    inference: Annotated[
        str | None, typer.Option(help="full or masked; default what the acceptance gate decided.")
    ] = None,
    sampler: Annotated[str, typer.Option(help="dpm, heun or ddpm.")] = "dpm",
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda.")] = "auto",
    samples: Annotated[
        Path | None, typer.Option(help="Parquet file for all sample maps too, 32 KiB each.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for one PNG per wafer.")] = None,
    plot_wafers: Annotated[int, typer.Option(min=0, help="The first so many wafers get a PNG.")] = 20,
    plot_scale_nm: Annotated[
        float, typer.Option(help="Colours from -this to this, nm; sigma from 0 to a quarter of it.")
    ] = 6.0,
) -> None:
    """Forecast overlay maps: mean, sigma, M3S with its 90 % interval, out-of-spec probability.

    A run that was killed goes on where it was when the same command is given again.
    """
    from ikddit.batch import write_forecast
    from ikddit.device import pick_device
    from ikddit.forecast import ForecastFiles
    from ikddit.generator import Generator

    # names that are not known are refused by `Generator.plan`, with what is known
    options = cast(
        "SamplingOptions",
        {
            "guidance": guidance,
            "guidance_kind": guidance_kind,
            "inference": inference,
            "sampler": sampler,
        },
    )
    files = ForecastFiles(Path(out), samples, plots, plot_wafers, plot_scale_nm)
    generator = Generator.load(model, pick_device(device, "--device"))
    done = write_forecast(generator, records, files, n, steps, seed, limit_nm, **options)
    typer.echo(f"{done.wafers} wafers -> {out}")
    if done.resumed:
        typer.echo(f"{done.resumed} of them were forecast by an earlier run that did not end")
    if samples is not None:
        typer.echo(f"{done.samples} sample maps -> {samples}")
    if plots is not None:
        typer.echo(f"{done.plots} plots -> {plots}/")
    if done.plots_skipped:
        typer.echo(f"{done.plots_skipped} wafers without a plot: --plot-wafers {plot_wafers}")


@app.command("ingest")
def ingest_command(
    path: Annotated[
        Path, typer.Argument(help="MPOM folder, zip of one, mark table, or folder of mark tables.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for records/, quarantine/ and ingest.json.")] = Path(
        "ingested"
    ),
    params: Annotated[Path | None, typer.Option(help="Take section `ingest` of this params.yaml.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="auto, mpom or marks.")] = None,
    scale_nm: Annotated[
        float | None, typer.Option(help="PNG scale of a folder without dataset.json.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels per side of the PNGs.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; 0 takes all cores.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Mark tables: canonical=name in the file; may be repeated.")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="Mark tables: nm or um.")] = None,
    sign: Annotated[
        str | None, typer.Option(help="Mark tables: current_minus_previous or previous_minus_current.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="Mark tables: wafer or field.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Mark tables: column delimiter.")] = None,
    interpolate: Annotated[
        bool | None, typer.Option("--interpolate/--no-interpolate", help="Mark tables: fill gaps.")
    ] = None,
) -> None:
    """Read raw overlay data into canonical records; what cannot be used goes to quarantine with its reason."""
    from ikddit.errors import ParamsError
    from ikddit.mpom.ingest import ingest
    from ikddit.mpom.summary import report_lines
    from ikddit.params import load_params, parse_params

    section = load_params(params).ingest.model_dump() if params else {"marks": {}}
    given = {"format": format_, "scale_nm": scale_nm, "image_size": image_size, "workers": workers}
    section |= {key: value for key, value in given.items() if value is not None}
    marks = {
        "unit": unit,
        "sign": sign,
        "reference": reference,
        "delimiter": delimiter,
        "interpolate": interpolate,
    }
    section["marks"] |= {key: value for key, value in marks.items() if value is not None}
    for pair in column or []:
        name, equals, alias = pair.partition("=")
        if not equals:
            raise ParamsError(
                f"--column {pair}: expected canonical=name in the file, for example wafer_x_mm=X"
            )
        section["marks"].setdefault("columns", {})[name.strip()] = alias
    settings = parse_params({"ingest": section}, "ikddit ingest").ingest
    report = ingest(path, out / "records", out / "quarantine", out / "ingest.json", settings)
    typer.echo("\n".join(report_lines(report, out)))


@app.command("monitor")
def monitor(
    records: Annotated[
        Path | None, typer.Option(help="Folder of record Parquet files; default data/validated.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Per-wafer errors; default data/evaluation/wafers.parquet.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Limits come from wafers before this date; default end of training.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file; default reports/monitoring.html.")] = None,
) -> None:
    """Chart data quality, overlay and forecast error over time per scanner and chuck, with control limits."""
    import pandas as pd

    from ikddit.errors import InputError
    from ikddit.monitoring.page import PAGE, write_monitoring
    from ikddit.params import load_params

    try:
        end = None if until is None else pd.to_datetime(until, utc=True)
    except ValueError as error:
        raise InputError("--until", "date", f"{until!r}: {error}", "write it as 2024-10-20") from None
    found = write_monitoring(".", load_params().control, records, scores, end, out)
    for alarm in found.alarms[:20]:
        machine = f"{alarm['scanner']} {alarm['chuck']}"
        typer.echo(
            f"{alarm['start'].date()} {machine} {alarm['metric']} = {alarm['value']:.4g}, limits "
            f"{alarm['low']:.4g} to {alarm['high']:.4g}: {alarm['kind']} beyond them"
        )
    typer.echo(f"{len(found.alarms)} alarms in {len(found.charts)} charts -> {out or PAGE}")


@app.command("simulate")
def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("simulated"),
    lots: Annotated[int, typer.Option(help="Lots of 25 wafers.")] = 40,
    from_day: Annotated[float, typer.Option(help="First day of the window.")] = 0.0,
    days: Annotated[float, typer.Option(help="Length of the window, days.")] = 30.0,
    fab_seed: Annotated[int, typer.Option(help="Which fab.")] = 0,
    sample_seed: Annotated[int, typer.Option(help="Which wafers of it.")] = 0,
    layout: Annotated[str, typer.Option(help="zip, folders, csv or parquet (mark tables).")] = "zip",
    shift: Annotated[
        str | None,
        typer.Option(help="Forced step of a scanner from a day on: LITH03:45:2.5 (scanner:day:nm)."),
    ] = None,
) -> None:
    """Write wafers of a simulated fab with their exact noise floor, for example the next month of it."""
    from ikddit.params import parse_params
    from ikddit.simulator.writer import write_dataset

    section = {
        "lots": lots,
        "from_day": from_day,
        "days": days,
        "fab_seed": fab_seed,
        "sample_seed": sample_seed,
        "layout": layout,
        "shift": _shift(shift) if shift else None,
    }
    write_dataset(parse_params({"simulate": section}, "ikddit simulate").simulate, out)
    typer.echo(f"{25 * lots} wafers -> {out}")


def _shift(text: str) -> dict[str, str | float]:
    from ikddit.errors import ParamsError

    try:
        scanner, day, nm = text.split(":")
        return {"scanner": scanner, "day": float(day), "nm": float(nm)}
    except ValueError:
        raise ParamsError(f"--shift {text}: expected scanner:day:nm, for example LITH03:45:2.5") from None


@app.command("sizes")
def sizes(
    names: Annotated[list[str] | None, typer.Argument(help="Sizes, as T/8; all if none is named.")] = None,
    mask_ratio: Annotated[float, typer.Option(min=0.0, max=0.99, help="Share of tokens hidden.")] = 0.5,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/model.md.")] = False,
) -> None:
    """Measure parameters and forward FLOPs of the model sizes, beside the paper's S and XL."""
    from ikddit.networks.complexity import markdown_table, measure_all, print_table

    rows = measure_all(mask_ratio, names or ())
    if markdown:
        typer.echo(markdown_table(rows))
    else:
        print_table(rows, mask_ratio)
