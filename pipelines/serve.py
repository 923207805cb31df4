"""Run the flows of this checkout when they are due: `python -m pipelines.serve` (or `make schedule`).

Needs a Prefect server (`make services`, or `PREFECT_API_URL`): a temporary one never fires a schedule. When is
in section `schedule` of params.yaml. At most one flow runs at a time; of one flow, a run that comes while another
is under way (by hand, by a second machine's worker) is cancelled. A restart leaves the schedules as they were.
"""

import argparse
import importlib
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikddit.checkout import checkout_root
from ikddit.errors import IkdditError, ParamsError
from ikddit.params import ScheduleParams, load_params

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

LOCAL_API = "http://127.0.0.1:4200/api"
"""Of `make services`."""
FLOWS: Mapping[str, str] = {
    "retrain": "look at new data; retrain, compare and promote if there is reason to",
    "reproduce": "run the stages of dvc.yaml that changed",
}
"""Flow `pipelines.<name>:<name>` -> what a person reads beside it."""
NAME = "scheduled"
HEARTBEAT_RULE = "ikddit: runs whose process is gone"
MISSED_HEARTBEATS = 3


def make_deployment(name: str, schedule: ScheduleParams, every_s: float | None = None) -> "RunnerDeployment":
    """Make the deployment `<name>/scheduled` of a flow.

    Args:
        name: key of `FLOWS`.
        schedule: when; a flow without a cron line only runs on demand.
        every_s: seconds; takes the place of the cron line.

    Raises:
        ParamsError: the cron line or the time zone is none.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
    from prefect.types.entrypoint import EntrypointType

    cron = getattr(schedule, name)
    when: CronSchedule | IntervalSchedule | None = None
    if every_s is not None:
        when = IntervalSchedule(interval=timedelta(seconds=every_s))
    elif cron is not None:
        try:
            when = CronSchedule(cron=cron, timezone=schedule.timezone)
        except ValueError as error:
            reason = str(error).splitlines()[-2].strip() if "\n" in str(error) else str(error)
            raise ParamsError(
                f"params.yaml: schedule.{name}: {cron!r} in {schedule.timezone!r}: {reason}"
            ) from None
    flow: Any = getattr(importlib.import_module(f"pipelines.{name}"), name)
    deployment: RunnerDeployment = flow.to_deployment(
        NAME,
        schedule=when,
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        description=FLOWS[name],
        tags=["ikddit"],
        # By module: a flow file imports its neighbours in `pipelines`.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return deployment


def heartbeat_rule(heartbeat_s: int) -> Any:
    """A rule for the server: a flow run that was alive and has not been heard of for three heartbeats is Crashed.

    A process ended by kill -9 or a power cut reports nothing, so without this its run would stay Running for ever
    and hold the concurrency slot of its deployment.

    Args:
        heartbeat_s: seconds between the signs of life of a run (`PREFECT_FLOWS_HEARTBEAT_FREQUENCY`, at least 30).
    """
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture

    ends = ("Completed", "Failed", "Cancelled", "Crashed", "Cancelling", "Paused", "Suspended")
    return Automation(
        name=HEARTBEAT_RULE,
        description="Marks flow runs Crashed whose process ended without a word (kill -9, power cut).",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ends)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=MISSED_HEARTBEATS * heartbeat_s),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"no sign of life for {MISSED_HEARTBEATS * heartbeat_s} s"
            )
        ],
    )


def ensure_heartbeat_rule() -> None:
    """Give the server the heartbeat rule, in place of the one it may have."""
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.automations import AutomationCore
    from prefect.settings.context import get_current_settings

    heartbeat_s = get_current_settings().flows.heartbeat_frequency
    if heartbeat_s is None:
        raise IkdditError("PREFECT_FLOWS_HEARTBEAT_FREQUENCY is switched off; set it to 30 s or more")
    rule = heartbeat_rule(heartbeat_s)
    core = AutomationCore.model_validate(rule.model_dump(exclude={"id"}))
    with get_client(sync_client=True) as client:
        there = client.read_automations_by_name(HEARTBEAT_RULE)
        client.create_automation(core)
        # Only now: a runner that is stopped in between must not leave the server without a rule.
        for old in there:
            client.delete_automation(old.id)


def refuse_missing_server() -> None:
    """Make sure that the server of `PREFECT_API_URL` answers.

    Raises:
        IkdditError: it does not.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        if (problem := client.api_healthcheck()) is not None:
            raise IkdditError(
                f"no Prefect server at {os.environ['PREFECT_API_URL']} ({problem}); "
                "start one: make services, or name another: PREFECT_API_URL"
            )


def serve_flows(root: Path, names: list[str], every_s: float | None = None) -> None:
    """Serve flows until the process is told to stop.

    Raises:
        ParamsError: params.yaml is wrong.
        IkdditError: there is no server.
    """
    from prefect import serve

    settings = load_params(root / "params.yaml").schedule
    refuse_missing_server()
    deployments = [make_deployment(name, settings, every_s) for name in names]
    ensure_heartbeat_rule()
    for deployment in deployments:
        cron = getattr(settings, deployment.flow_name)
        when = f"every {every_s:g} s" if every_s is not None else cron or "on demand"
        print(f"{deployment.full_name}: {when} ({FLOWS[deployment.flow_name]})", flush=True)
    serve(*deployments, limit=1, pause_on_shutdown=False, print_starting_message=False)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.serve", description=__doc__.splitlines()[0])
    parser.add_argument("flows", nargs="*", metavar="FLOW", help=f"of {', '.join(FLOWS)}; default all")
    parser.add_argument(
        "--every", type=float, metavar="SECONDS", help="instead of the cron lines, to try it out"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.flows) - set(FLOWS):
        parser.error(f"{unknown.pop()!r} is no flow to serve; choose from {', '.join(FLOWS)}")
    os.environ.setdefault("PREFECT_API_URL", LOCAL_API)
    root = checkout_root()
    os.chdir(root)  # runs are started here, where `pipelines` is found
    try:
        serve_flows(root, arguments.flows or list(FLOWS), arguments.every)
    except IkdditError as error:
        raise SystemExit(f"serve: {error}") from None


if __name__ == "__main__":
    main()
