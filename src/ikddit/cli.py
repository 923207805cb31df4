"""The `ikddit` command: a thin Typer layer; each command imports what it needs when it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from ikddit.diffusion.plan import SamplingOptions
    from ikddit.params import Params, RegisterParams
    from ikddit.registry.store import Store

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


def _store_and_settings() -> "tuple[Store, RegisterParams]":
    """The checkout's MLflow store, and section `register` of its params.yaml."""
    from ikddit.params import load_params
    from ikddit.registry.store import locate_store

    store = locate_store()
    return store, load_params(store.root / "params.yaml").register_


def _params_here(path: Path | None = None) -> "Params":
    """Read a params.yaml, by default the one of this folder, and name it; the defaults where there is none."""
    from ikddit.params import load_params, parse_params

    if path is None and not Path("params.yaml").exists():
        return parse_params({})
    params = load_params(path or "params.yaml")
    typer.echo(f"settings: {path or 'params.yaml'}")
    return params


# Commands, one block each --------------------------------------------------------------------------------


@app.command("ui")
def ui(
    port: Annotated[int, typer.Option(help="Port on this machine.", envvar="MLFLOW_PORT")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on.", envvar="MLFLOW_HOST")] = "127.0.0.1",
) -> None:
    """Open the MLflow UI on this checkout's store."""
    from ikddit.registry.ui import serve_ui

    store, settings = _store_and_settings()
    serve_ui(store, settings.experiment, host, port)


@app.command("models")
def models(
    name: Annotated[str | None, typer.Option(help="Registered model; default register.model_name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the registered versions with their aliases and metrics."""
    import dataclasses
    import json

    from ikddit.registry.show import list_versions, print_versions

    store, settings = _store_and_settings()
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
    from ikddit.registry.promotion import promote
    from ikddit.registry.show import move_lines

    store, settings = _store_and_settings()
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
    from ikddit.registry.promotion import rollback
    from ikddit.registry.show import move_lines

    store, settings = _store_and_settings()
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
    from ikddit.registry.serve import serve

    store, settings = _store_and_settings()
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
    out: Annotated[Path, typer.Option(help="Folder for validated/, quarantine/validate/ and report/.")],
    params: Annotated[
        Path | None,
        typer.Option(help="Take section `validate` of this file; default params.yaml here, if there is one."),
    ] = None,
) -> None:
    """Judge records with the quality gate; bounds come from params.yaml here, else the defaults.

    What ingest refused counts too, where its quarantine/ lies beside the records.
    """
    from ikddit.mpom.validate import validate as judge

    bounds = _params_here(params).validate_
    beside = records.resolve().parent / "quarantine"
    places = [folder for folder in (beside, beside / "ingest") if (folder / "quarantine.jsonl").is_file()]
    refused = places[0] if places else None
    if refused is not None:
        typer.echo(f"counted too: what ingest refused, {refused}/quarantine.jsonl")
    metrics = judge(
        records, out / "validated", out / "quarantine" / "validate", out / "report", bounds, refused
    )
    counts = f"{metrics['records']} records passed, {metrics['quarantined']} quarantined"
    if refused is not None:
        counts += f", {metrics['quarantined_by_ingest']} refused by ingest"
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
    sampler: Annotated[str, typer.Option(help="trig, dpm, heun or ddpm.")] = "trig",
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
    params: Annotated[
        Path | None,
        typer.Option(help="Take section `ingest` of this file; default params.yaml here, if there is one."),
    ] = None,
    format_: Annotated[str | None, typer.Option("--format", help="auto, mpom or marks.")] = None,
    scale_nm: Annotated[
        float | None, typer.Option(help="PNG scale of a folder without dataset.json.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels per side of the PNGs.")] = None,
    engine: Annotated[str | None, typer.Option(help="processes or dask; the records are the same.")] = None,
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
    from ikddit.params import parse_params

    section = _params_here(params).ingest.model_dump()
    given = {
        "format": format_,
        "scale_nm": scale_nm,
        "image_size": image_size,
        "engine": engine,
        "workers": workers,
    }
    section |= {key: value for key, value in given.items() if value is not None}
    if engine == "processes":
        section["scheduler"] = None  # of params.yaml, for dask
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
        section["marks"]["columns"][name.strip()] = alias
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
    params = parse_params({"simulate": section}, "ikddit simulate").simulate
    _refuse_other_data(out)
    write_dataset(params, out)
    typer.echo(f"{25 * lots} wafers -> {out}")


def _refuse_other_data(out: Path) -> None:
    """Keep `simulate` from replacing anything but an older data set of its own.

    Raises:
        InputError: the path is a file, or a folder with other things in it.
    """
    from ikddit.atomic import read_json
    from ikddit.errors import InputError

    if not out.exists():
        return
    found = sorted(path.name for path in out.iterdir()) if out.is_dir() else ["a file"]
    try:  # records that were made of a data set have its dataset.json too, but no lots/
        ours = set(found) == {"dataset.json", "lots"} and "seeds" in read_json(out / "dataset.json")
    except (OSError, ValueError, TypeError):
        ours = False
    if found and not ours:
        reason = f"holds other things than a simulated data set ({found[0]}); it would be replaced as a whole"
        raise InputError(str(out), "--out", reason, "give another folder")


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
