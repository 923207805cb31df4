"""Retraining as a Prefect flow: deliveries -> gate -> drift and error -> decision -> challenger -> comparison.

`python -m pipelines.retrain` runs it once, with and without a Prefect server; scheduled it does the same.
docs/retraining.md says what each step does and what a killed run leaves.
"""

import argparse
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.settings import PREFECT_API_URL

from ikddit.atomic import write_json
from ikddit.checkout import checkout_root
from ikddit.errors import ParamsError, RegistryError
from ikddit.monitoring.decision import Decision, Findings, decide
from ikddit.params import Params, load_params
from ikddit.registry.promotion import ChampionChanged, PromotionRefused, promote
from ikddit.registry.store import Store, locate_store, open_store
from pipelines.challenger import clean_up, run_experiment
from pipelines.champion import MONTHS_TAG, model_at
from pipelines.deliveries import (
    BASE,
    MONTHS,
    REFUSED,
    Judged,
    chosen,
    compose,
    judge,
    name_of,
    pending,
    put_away,
)
from pipelines.examine import compare_models, examine
from pipelines.process import dvc_command, run_command, unwind_on_sigterm
from pipelines.summary import markdown, sentence

WORK = ".ikddit/retrain"
"""Scratch of the running flow, its lock, and what the next run must know of a killed one."""
RECORDS = "reports/retrain"
LIMIT = "retrain"
"""Prefect's global concurrency limit: one at a time over all machines of a server."""
WEBHOOK = "IKDDIT_WEBHOOK_URL"
WAIT_S = 2.0
"""For the other retraining to end, before this one gives way to it."""
Say = Callable[[str], object]


class BusyError(Exception):
    """Another retraining is under way."""


@task(name="gate", task_run_name="gate {path.name}", cache_policy=NO_CACHE)
def judge_delivery(path: Path, root: Path, params: Params, beside: list[Path]) -> Judged:
    """Ingest and validate one delivery; a corrupt one is stopped here, and the second of a name."""
    judged = judge(path, root, params, root / WORK / "gate" / name_of(path), beside)
    say = get_run_logger().info if judged.passed else get_run_logger().warning
    say("%s: %s: %s", judged.name, "passed the gate" if judged.passed else "stopped", judged.reason)
    return judged


@task(name="drift and error", cache_policy=NO_CACHE)
def measure(root: Path, params: Params, store: Store, names: list[str]) -> dict[str, Any]:
    """Measure drift, and the champion's error, on wafers that passed the gate."""
    champion = model_at(root, store, params.register_)
    assert champion is not None
    return examine(champion, [root / WORK / "gate" / name / "validated" for name in names], params)


@task(name="challenger", task_run_name="challenger {name}", cache_policy=NO_CACHE)
def train_challenger(
    root: Path, params: Params, store: Store, name: str, parts: list[str], deliveries: dict[str, Path]
) -> dict[str, Any]:
    """Make the next data set version and run the pipeline on it; the version is registered as challenger."""
    compose(root, params, parts, deliveries)
    branch, registration = run_experiment(root, name, get_run_logger().info)
    client, _ = open_store(store, params.register_.experiment)
    version = int(registration["version"])
    months = ",".join(parts)
    client.set_model_version_tag(params.register_.model_name, str(version), MONTHS_TAG, months)
    return {"version": version, "experiment": f"retrain-{name}", "branch": branch, "months": parts}


@task(name="comparison", cache_policy=NO_CACHE)
def compare_and_settle(
    root: Path, params: Params, store: Store, champion: int, challenger: int, why: str
) -> tuple[dict[str, Any], str, str]:
    """Compare both on the same later wafers; promote by moving the alias, or keep, with the reason as tags.

    Returns:
        The comparison, the decision (`promoted` or `kept`) and its reason.
    """
    settings = params.register_
    client, _ = open_store(store, settings.experiment)
    old, new = (model_at(root, store, settings, version) for version in (champion, challenger))
    assert old is not None
    assert new is not None
    outcome, paired = compare_models(old, new, params)
    decision, reason = "kept", outcome.get("reason", "")
    if outcome.get("better") and paired is not None:
        try:
            promote(
                challenger,
                f"{reason}; retrained because of {why}"[:1000],
                name=settings.model_name,
                experiment=settings.experiment,
                store=store,
                by="retrain",
                paired=paired,
                against=champion,
                limits=settings.promotion,
            )
            decision = "promoted"
        except PromotionRefused as refused:
            reason = f"{reason}; the gate refused: {'; '.join(refused.verdict.failed)}"
        except ChampionChanged as changed:
            reason = f"{reason}; {changed}"
    for tag, text in (("retrain.decision", decision), ("retrain.why", why), ("retrain.reason", reason)):
        client.set_model_version_tag(settings.model_name, str(challenger), tag, text[:1000])
    return outcome, decision, reason


@flow(name="retrain")
def retrain(root: Path | None = None, incoming: str | None = None, force: bool = False) -> dict[str, Any]:
    """Take in new data, look whether the champion still fits, and retrain and promote if it pays.

    Args:
        root: the checkout; by default the one this process runs in.
        incoming: drop folder instead of `retrain.incoming`; relative to the checkout.
        force: retrain without drift, error or age, also without new wafers.

    Returns:
        The record of this run, as in `reports/retrain/<name>.json`; `decision` is one of `stopped at the
        gate`, `nothing new`, `not retrained`, `promoted`, `kept`, `busy`.

    Raises:
        ParamsError: params.yaml is wrong, or lets no version be registered; nothing has run.
        RegistryError: there is no champion yet, or the registry cannot be used.
        CommandError: the challenger's pipeline failed; champion and deliveries are as they were.
    """
    root = (root or checkout_root()).resolve()
    params = load_params(root / "params.yaml")
    if not params.register_.version:
        raise ParamsError(
            "params.yaml: register.version: false, but a challenger is a version; set it to true"
        )
    say = get_run_logger().info
    try:
        with one_at_a_time(root):
            record = _retrain(root, params, incoming, force, say)
    except BusyError as busy:
        record = _record("busy", "busy", [str(busy)])
    else:
        write_json(root / RECORDS / f"{record['name']}.json", record)
    create_markdown_artifact(key="retrain", markdown=markdown(record), description=sentence(record))
    say(sentence(record))
    notify(sentence(record), params.retrain.webhook_timeout_s, get_run_logger().warning)
    return record


def _retrain(root: Path, params: Params, incoming: str | None, force: bool, say: Say) -> dict[str, Any]:
    settings = params.retrain
    clean_up(root, say)
    if settings.update:
        command, env = dvc_command("update", settings.update)
        run_command(command, root, say, env)
    paths = pending(root / (incoming or settings.incoming))
    judged = [judge_delivery(path, root, params, paths) for path in paths]
    passed = {drop.name: path for path, drop in zip(paths, judged, strict=True) if drop.passed}
    record = _record(
        list(passed)[-1] if passed else judged[-1].name if judged else f"{datetime.now(UTC):%Y%m%dT%H%M%S}",
        "nothing new",
        [],
        drops=[asdict(drop) for drop in judged],
    )
    if judged and not passed and not force:
        record |= {"decision": "stopped at the gate", "reasons": [f"{d.name}: {d.reason}" for d in judged]}
    else:
        record |= _judge_champion(root, params, force, record["name"], passed)
        record["reasons"] += [f"stopped at the gate: {d.name}: {d.reason}" for d in judged if not d.passed]
    # Last of all: until here a killed run finds its deliveries where they were, and begins again.
    for path, drop in zip(paths, judged, strict=True):
        put_away(path, root / (MONTHS if drop.passed else REFUSED), drop)
        # Report and quarantine of a refused one stay: its reason points to them.
        gate = root / WORK / "gate" / drop.name
        shutil.rmtree(gate if drop.passed else gate / "records", ignore_errors=True)
    return record


def _judge_champion(
    root: Path, params: Params, force: bool, name: str, new: dict[str, Path]
) -> dict[str, Any]:
    """Everything after the gate: what is added to the record."""
    store = locate_store(cwd=root)
    champion = model_at(root, store, params.register_)
    if champion is None:
        raise RegistryError(
            "there is no champion to retrain; run `dvc repro` once, which registers the first"
        )
    deliveries = {name_of(path): path for path in pending(root / MONTHS)} | new
    parts = chosen(deliveries, params.retrain.months)
    unseen = set(parts) - {BASE, *champion.months}
    seen: dict[str, Any] = {"champion": {"version": champion.version, "rmse_nm": champion.rmse_nm}}
    seen["champion"]["age_days"] = champion.age_days
    fresh = [delivery for delivery in new if delivery in unseen]
    findings = measure(root, params, store, fresh) if fresh else {}
    seen |= findings
    decision: Decision = decide(
        Findings(
            new_months=len(unseen),
            drift=findings["drift"]["reasons"] if findings else None,
            rmse_nm=findings["error"]["rmse_nm"] if findings else None,
            registered_rmse_nm=champion.rmse_nm,
            age_days=champion.age_days,
            forced=force,
        ),
        params.retrain,
    )
    seen |= {"triggers": list(decision.triggers), "reasons": list(decision.reasons)}
    if not decision.retrain:
        if older := sorted(unseen - set(new)):
            seen["reasons"].append(f"not in the champion: {', '.join(older)}; --force trains with them")
        return seen | {"decision": "not retrained" if unseen else "nothing new"}
    seen["challenger"] = train_challenger(root, params, store, name, parts, deliveries)
    version = seen["challenger"]["version"]
    if version == champion.version:
        same = "the challenger is the champion: same data, same params, same model"
        return seen | {"decision": "kept", "reasons": [*seen["reasons"], same]}
    why = ", ".join(decision.triggers)
    outcome, verdict, reason = compare_and_settle(root, params, store, champion.version, version, why)
    return seen | {
        "comparison": outcome,
        "decision": verdict,
        "reasons": [*seen["reasons"], f"{verdict}: {reason}"],
    }


def _record(name: str, decision: str, reasons: list[str], **more: Any) -> dict[str, Any]:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    name = re.sub(
        r"[^A-Za-z0-9._-]", "_", name
    )  # it names a file, and a refused delivery may be called anything
    return {"name": name, "at": at, "decision": decision, "reasons": reasons, **more}


@contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Hold the checkout's lock, and the server's concurrency limit, for as long as a retraining runs.

    The lock is the operating system's and goes with its process, however that ends; the limit is a lease of
    Prefect's server that runs out by itself. A temporary server is nobody else's and forgets its leases: there the
    lock is all.

    Raises:
        BusyError: another retraining has it.
    """
    (root / WORK).mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(root / WORK / "lock").acquire(timeout=WAIT_S))
            if PREFECT_API_URL.value():
                with get_client(sync_client=True) as client:
                    client.upsert_global_concurrency_limit_by_name(LIMIT, 1)
                held.enter_context(concurrency(LIMIT, timeout_seconds=WAIT_S))
        except (Timeout, TimeoutError):
            raise BusyError("another retraining is under way; this one gave way to it") from None
        yield


def notify(text: str, timeout_s: float, warn: Say) -> bool:
    """Post `{"text": ...}` to the address in IKDDIT_WEBHOOK_URL; a failure is a warning, never an error.

    Returns:
        Whether somebody was told.
    """
    url = os.environ.get(WEBHOOK)
    if not url:
        return False
    try:
        if not url.startswith(("http://", "https://")):
            raise ValueError("not an http address")
        body = json.dumps({"text": text}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout_s):
            return True
    except (OSError, ValueError, HTTPException) as error:  # HTTPException: a login or no port in the address
        # The address may hold a secret: it is not repeated.
        warn(f"{WEBHOOK}: nobody was told: {type(error).__name__}")
        return False


def main() -> None:
    """Parse the command line and run the flow once."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.retrain", description=__doc__)
    parser.add_argument("--incoming", help="drop folder instead of retrain.incoming")
    parser.add_argument("--force", action="store_true", help="retrain whatever was found")
    arguments = parser.parse_args()
    unwind_on_sigterm()
    retrain(incoming=arguments.incoming, force=arguments.force)


if __name__ == "__main__":
    main()
