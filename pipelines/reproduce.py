"""The pipeline as a Prefect flow: every stage of dvc.yaml is a task, in DVC's own order.

`python -m pipelines.reproduce` (or `ikddit run`) works with and without a Prefect server.
"""

import argparse
import json
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State

from ikddit.checkout import checkout_root
from ikddit.params import load_params
from ikddit.registry.result import numbers
from pipelines.mend import mend
from pipelines.process import CommandError, dvc_command, run_command, unwind_on_sigterm

REPORTS = {"": "reports/evaluation/metrics.json", "timing": "reports/timing.json"}
"""Prefix of the names in the summary -> metrics file."""
REGISTRATION = "reports/registration.json"


def read_stages(root: Path) -> dict[str, list[str]]:
    """Read the stages from dvc.yaml in an order that can be run: name -> names of the stages it needs."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        graph = repo.index.graph
        needs = {stage.addressing: sorted(n.addressing for n in graph.successors(stage)) for stage in graph}
    return {name: needs[name] for name in TopologicalSorter(needs).static_order()}


@task(task_run_name="{name}")
def run_stage(name: str, root: Path, force: bool) -> None:
    """Run one stage if DVC finds it changed; its output goes to the log of the task."""
    command, env = dvc_command("repro", "--single-item", *(["--force"] if force else []), name)
    run_command(command, root, get_run_logger().info, env)


@flow(name="reproduce")
def reproduce(root: Path | None = None, force: bool = False) -> dict[str, Any]:
    """Reproduce the pipeline, stage by stage.

    Args:
        root: the checkout; by default the one this process runs in.
        force: run every stage, changed or not.

    Returns:
        What the register stage wrote.

    Raises:
        ParamsError: params.yaml is wrong; nothing has run.
        CommandError: a stage failed; the stages after it were not tried.
    """
    root = (root or checkout_root()).resolve()
    load_params(root / "params.yaml")
    mend(root, get_run_logger().warning)
    done: dict[str, State[None]] = {}
    for name, needs in read_stages(root).items():
        # One by one in this thread: DVC locks the checkout, and a cancelled flow must reach its stage.
        before = [done[need] for need in needs]
        done[name] = run_stage(name, root, force, wait_for=before, return_state=True)
        if not done[name].is_completed():
            done[name].result()  # raises what the stage raised
            raise CommandError(f"stage {name} ended as {done[name].name}")
    registration: dict[str, Any] = json.loads((root / REGISTRATION).read_text())
    create_markdown_artifact(
        key="reproduce", markdown=summary(root, registration), description="Metrics of this run"
    )
    return registration


def summary(root: Path, registration: dict[str, Any]) -> str:
    """Write version and metrics as a Markdown table."""
    version = registration["version"] or "none (register.version: false)"
    rows = [f"# {registration['model_name']} version {version}", "", "| metric | value |"]
    rows.append("|---|---|")
    for prefix, path in REPORTS.items():
        if (root / path).is_file():
            found = numbers(json.loads((root / path).read_text()), prefix)
            rows += [f"| {name} | {value:.6g} |" for name, value in found.items()]
    return "\n".join(rows) + "\n"


def main() -> None:
    """Parse the command line and run the flow once."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.reproduce", description=__doc__)
    parser.add_argument("--force", action="store_true", help="run every stage, changed or not")
    arguments = parser.parse_args()
    unwind_on_sigterm()
    reproduce(force=arguments.force)


if __name__ == "__main__":
    main()
