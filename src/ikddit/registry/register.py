"""One result -> one MLflow run and one version in the model registry, however often it is asked for.

Aliases: `register.alias` (default `challenger`) always moves to the newest version; `champion`, which serving
reads, is given to the first version only and moves by a promotion (`ikddit.registry.promotion`), never by itself.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikddit.atomic import write_json
from ikddit.console import log
from ikddit.errors import IkdditError, RegistryError
from ikddit.params import Params, RegisterParams
from ikddit.registry.gate import GateVerdict, promotion_gate
from ikddit.registry.package import check_folder, example_frame, log_package, served_folder
from ikddit.registry.promotion import CHAMPION, crown_first, evidence_of_champion
from ikddit.registry.result import Result, collect
from ikddit.registry.store import Store, has_files, if_there, locate_store, open_store, process_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FINGERPRINT_TAG = "fingerprint"
EXP_TAG = "dvc_exp_name"
VERSION_TAG = "model_version"
SWEEP_TAG = "sweep"
VERSION_METRICS = ("rmse_nm", "r2", "m3s_error_nm", "ome_1p5", "crps_nm", "floor_rmse_nm")
"""Metrics repeated as tags of the version, for the registry's table."""
VERSION_PARAMS = ("model", "mask_ratio", "seed")
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100


def register(params: Params, folder: Path = Path(), store: Store | None = None) -> dict[str, Any]:
    """Register the result in `folder`; a second call for the same result changes nothing.

    A result is known by its fingerprint. If it is registered already but a DVC experiment with a new name
    asks for it (all its stages came from the cache), a run of that name is added that points to the version.
    Processes on this machine take turns. A failure leaves a run marked FAILED and no version; a kill leaves
    a run that the next call marks KILLED.

    With `register.version: false` (sweeps) the result gets its run and nothing else: no version, no alias.

    Args:
        params: the parameters the result was made with.
        folder: the workspace (a clone under `dvc exp run --temp`).
        store: where to register; by default the store of the main checkout.

    Returns:
        What `reports/registration.json` holds: model_name, version, run_id, fingerprint, alias (null where it
        has gone on to a newer version), tracking_uri (without this machine's paths) and model_uri; of a run
        without a version these are null: version, alias and model_uri.

    Raises:
        RegistryError: the result is incomplete, or the store or MLflow failed.
        ModelError: the model folder is not fit to be registered.
    """
    result = collect(params, folder)
    check_folder(result.model)
    store = store or locate_store()
    settings = params.register_
    with store.lock():
        client, experiment_id = open_store(store, settings.experiment)
        version = find_version(client, settings.model_name, result.fingerprint) if settings.version else None
        if not settings.version:
            run_id = _run_of(client, experiment_id, result, None, settings.sweep)
        elif version is None:
            version, run_id = _new_version(client, experiment_id, result, params)
            log.info("registered %s version %s (run %s)", settings.model_name, version.version, run_id)
        else:
            _finish(client, version, settings)
            run_id = _run_of(client, experiment_id, result, version, settings.sweep)
        alias = _alias_of(client, version, settings.alias) if version else None
    return {
        "model_name": settings.model_name,
        "version": int(version.version) if version else None,
        "run_id": run_id,
        "fingerprint": result.fingerprint,
        "alias": alias,
        "tracking_uri": store.public_uri,
        "model_uri": f"models:/{settings.model_name}/{version.version}" if version else None,
    }


def write_registration(registration: dict[str, Any], path: Path = Path("reports/registration.json")) -> None:
    """Write the answer of `register` for git: nothing in it depends on this machine's folders."""
    write_json(path, registration)


def find_version(client: "MlflowClient", name: str, fingerprint: str) -> "ModelVersion | None":
    """Return the newest version with this fingerprint whose files are still there."""
    found = client.search_model_versions(f"name = '{name}' and tags.{FINGERPRINT_TAG} = '{fingerprint}'")
    for version in sorted(found, key=lambda v: int(v.version), reverse=True):
        if has_files(client, version):
            return version
        log.warning("%s version %s has lost its files; the model is registered anew", name, version.version)
    return None


def _new_version(
    client: "MlflowClient", experiment_id: str, result: Result, params: Params
) -> tuple["ModelVersion", str]:
    import mlflow

    settings = params.register_
    run = mlflow.start_run(
        experiment_id=experiment_id,
        run_name=result.run_name,
        tags=_run_tags(result, settings.sweep),
    )
    run_id = run.info.run_id
    version = None
    try:
        with run:
            _log_result(client, run_id, result)
            example = example_frame(result.folder / "data" / "prepared", result.model)
            with served_folder(result.model, result.tags["served"]) as folder:
                info = log_package(folder, example, {FINGERPRINT_TAG: result.fingerprint})
            # The tags come with the version in one transaction: no version is ever without its fingerprint.
            verdict = promotion_gate(
                result.evidence, evidence_of_champion(client, settings.model_name), limits=settings.promotion
            )
            tags = _version_tags(result, verdict)
            version = mlflow.register_model(info.model_uri, settings.model_name, tags=tags)
            client.set_tag(run_id, VERSION_TAG, version.version)
            _set_aliases(client, version, settings)
        return version, run_id
    except BaseException as error:
        if version is None:
            _discard_models(client, experiment_id, run_id)
        if isinstance(error, IkdditError) or not isinstance(error, Exception):
            raise
        raise RegistryError(
            f"run {run_id}: {type(error).__name__}: {error}; the run is marked FAILED, no version was made; "
            "repeat with `dvc repro register`"
        ) from error


def _discard_models(client: "MlflowClient", experiment_id: str, run_id: str) -> None:
    """Remove what a failed log_model left, so that the UI shows no model without a version."""
    for model in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(model.model_id)


def _finish(client: "MlflowClient", version: "ModelVersion", settings: RegisterParams) -> None:
    """Complete a version whose process died between making it and naming it."""
    run = if_there(client.get_run, str(version.run_id))
    if run is None:  # deleted for good; the version stands by itself
        return
    if run.info.status != "FINISHED":
        client.set_tag(run.info.run_id, VERSION_TAG, version.version)
        _set_aliases(client, version, settings)
        client.set_terminated(run.info.run_id, "FINISHED")


def _run_of(
    client: "MlflowClient", experiment_id: str, result: Result, version: "ModelVersion | None", sweep: str
) -> str:
    """Find the run of a result; add one for an experiment name not seen with it before, or without a version."""
    if result.exp_name is None and version is not None:
        return str(version.run_id)
    wanted = {FINGERPRINT_TAG: result.fingerprint} | ({EXP_TAG: result.exp_name} if result.exp_name else {})
    conditions = [f"tags.{name} = '{value}'" for name, value in wanted.items()]
    known = client.search_runs(
        [experiment_id], " and ".join([*conditions, "attributes.status = 'FINISHED'"]), max_results=1
    )
    if known:
        return str(known[0].info.run_id)
    tags = _run_tags(result, sweep)
    if version is not None:
        same = f"Same result as version {version.version} (run {version.run_id})"
        tags |= {
            VERSION_TAG: version.version,
            "mlflow.note.content": f"{same}: every stage came from the cache.",
        }
    run = client.create_run(experiment_id, run_name=result.run_name, tags=tags)
    run_id = str(run.info.run_id)
    try:
        _log_result(client, run_id, result)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    if version is not None:
        log.info("experiment %s is version %s again: run %s added", result.exp_name, version.version, run_id)
    else:
        log.info("run %s logged, without a version (register.version: false)", run_id)
    return run_id


def _alias_of(client: "MlflowClient", version: "ModelVersion", alias: str) -> str | None:
    """The alias if it stands at this version: of a result that comes again it may stand at a newer one."""
    aliases = client.get_registered_model(version.name).aliases
    return alias if str(aliases.get(alias)) == str(version.version) else None


def _set_aliases(client: "MlflowClient", version: "ModelVersion", settings: RegisterParams) -> None:
    client.set_registered_model_alias(version.name, settings.alias, version.version)
    if CHAMPION not in client.get_registered_model(version.name).aliases:
        crown_first(client, version, settings.promotion)


def _run_tags(result: Result, sweep: str) -> dict[str, str]:
    commit = result.tags.get("git_commit")
    source = {"mlflow.source.git.commit": commit} if commit else {}
    named = {SWEEP_TAG: sweep} if sweep else {}
    return result.tags | source | named | process_tags() | {FINGERPRINT_TAG: result.fingerprint}


def _version_tags(result: Result, verdict: GateVerdict) -> dict[str, str]:
    metrics = {
        name: f"{result.metrics[name]:.6g}"
        for name in VERSION_METRICS
        if result.metrics.get(name) is not None
    }
    params = {name: result.params[name] for name in VERSION_PARAMS}
    gate = {"gate": "promote" if verdict.promote else "keep", "gate_reasons": "; ".join(verdict.reasons)}
    evidence = result.evidence.as_tags()
    # MLflow's list of versions shows them in this order: what tells versions apart before two dozen hashes.
    return metrics | params | gate | evidence | result.tags | {FINGERPRINT_TAG: result.fingerprint}


def _log_result(client: "MlflowClient", run_id: str, result: Result) -> None:
    """Log params, metrics, curves and reports; in batches, since every call is a transaction."""
    from mlflow.entities import Metric, Param

    params = [Param(name, value) for name, value in result.params.items()]
    for start in range(0, len(params), PARAMS_PER_BATCH):
        client.log_batch(run_id, params=params[start : start + PARAMS_PER_BATCH])
    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, 0) for name, value in result.metrics.items()]
    metrics += [Metric(name, value, now, step) for name, step, value in result.curves()]
    for start in range(0, len(metrics), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_BATCH])
    for path in result.artifacts():
        place = path.parent.as_posix() if path.parent.name else None
        client.log_artifact(run_id, str(result.folder / path), place)
