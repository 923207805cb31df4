"""Put runs side by side: one row per DVC experiment or git revision, with the swept params and the metrics.

    python -m pipelines.collect seeds HEAD seed-1 seed-2 --param seed

writes `reports/ablations/seeds.csv` and prints mean and standard deviation over the rows.
"""

import argparse
import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ikddit.atomic import write_text
from ikddit.checkout import checkout_root
from ikddit.errors import IkdditError
from ikddit.registry.result import flatten
from pipelines.process import CommandError, git

CODE = ("src", "stages", "dvc.yaml")
SOURCES = (*CODE, "params.yaml")
"""What a run's figures depend on, beside the settings that an experiment changes."""
METRICS = "reports/evaluation/metrics.json"
TRAINING = "reports/train/summary.json"
TRAINING_SHOWN = ("seconds", "cpu_seconds", "student_parameters")
"""What a row has of the training, as `train.<name>`."""
DISTANCES = "reports/evaluation/fid.json"
"""Its figures join the row where the revision has it; the floor and settings, which no student moves, do not."""
SHOWN = (
    "rmse_nm", "ensemble_rmse_nm", "mean_only_rmse_nm", "ome_1p5", "m3s_error_nm", "crps_nm", "coverage_90",
    "m3s_coverage_90", "spread_skill", "shuffled_rmse_ratio", "frechet_embedding",
    "fid15k.embedding", "fid15k.overlay10_nm2", "fid15k.overlay_k_nm2",
    "fid15k.inception_64", "fid15k.inception_192", "fid15k.inception_768", "fid15k.inception_2048", "sfid",
    "inception_score", "kid_embedding", "precision_embedding", "recall_embedding", "density_embedding",
    "coverage_embedding",
)  # fmt: skip
"""Metrics whose mean and standard deviation are printed."""


def row_of(revision: str, params: Sequence[str], root: Path) -> dict[str, Any]:
    """Params and metrics of one revision or experiment; metrics keep their names, baselines are left out.

    `code_commit` is the last commit that changed the code it ran with.

    Raises:
        IkdditError: there is no such revision, or it lacks a param or its metrics.
    """
    import dvc.api
    from dvc.scm import RevError

    try:
        settings = dict(flatten(dvc.api.params_show(repo=str(root), rev=revision)))
        metrics = dict(flatten(dvc.api.metrics_show(METRICS, repo=str(root), rev=revision)))
        training = dvc.api.metrics_show(TRAINING, repo=str(root), rev=revision)
    except RevError:
        known = "`git log` and `dvc exp list --all-commits` name what is there"
        raise IkdditError(f"{revision}: no such revision or experiment here; {known}") from None
    except FileNotFoundError as error:
        raise IkdditError(f"{revision}: {error.filename}: not in it; was it run to its end?") from None
    if unknown := [name for name in params if name not in settings]:
        raise IkdditError(f"{unknown[0]}: not in params.yaml of {revision}")
    numbers = {k: v for k, v in metrics.items() if not k.startswith("baselines.")}
    numbers |= {f"train.{name}": training[name] for name in TRAINING_SHOWN if name in training}
    numbers |= distances_of(revision, root)
    swept = {name: settings[name] for name in params}
    return {"run": revision} | swept | {"code_commit": code_commit(revision, root)} | numbers


def code_commit(revision: str, root: Path) -> str:
    """The last commit up to a revision, or up to the start of an experiment, that changed `SOURCES`.

    Raises:
        CommandError: git does not know the revision.
    """
    try:
        commit = git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        which = ["--points-at", commit, "refs/exps"]
    except CommandError:  # the name of an experiment
        commit, which = revision, [f"refs/exps/*/*/{revision}"]
    newest = ["--sort=-creatordate", "--count=1", "--format=%(refname) %(objectname)"]
    if found := git(root, "for-each-ref", *newest, *which):
        ref, commit = found.split()
        start = "".join(ref.split("/")[2:4])
        if not git(root, "diff", "--name-only", start, commit, "--", *CODE):
            commit = start  # the experiment's own commit changes its settings
    return git(root, "log", "-1", "--abbrev=12", "--format=%h", commit, "--", *SOURCES)


def distances_of(revision: str, root: Path) -> dict[str, Any]:
    """Figures of fid.json of one revision, by dotted name; none where it has no such file."""
    import dvc.api

    try:
        found = dvc.api.metrics_show(DISTANCES, repo=str(root), rev=revision)
    except FileNotFoundError:
        return {}
    return {k: v for k, v in flatten(found) if not k.startswith(("reference.", "weights.", "settings."))}


def mean_and_sd(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float] | None:
    """Mean and standard deviation (n - 1) of a metric over the rows; None unless every row has it.

    >>> mean_and_sd([{"a": 1.0}, {"a": 3.0}], "a")
    (2.0, 1.4142135623730951)
    """
    values = [row.get(name) for row in rows]
    numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if len(numbers) < len(values) or len(values) < 2:
        return None
    return statistics.fmean(numbers), statistics.stdev(numbers)


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the rows as CSV; a column is there if any row has it, and empty where one does not."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.collect", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the table: reports/ablations/NAME.csv")
    parser.add_argument("revisions", nargs="+", help="git revisions or names of DVC experiments")
    parser.add_argument("--param", action="append", default=[], help="swept key of params.yaml; repeat")
    arguments = parser.parse_args()
    root = checkout_root()
    try:
        rows = [row_of(revision, arguments.param, root) for revision in arguments.revisions]
    except (IkdditError, CommandError) as error:
        raise SystemExit(f"collect: {error}") from None
    target = root / "reports" / "ablations" / f"{arguments.name}.csv"
    write_rows(rows, target)
    for name in SHOWN:
        if (found := mean_and_sd(rows, name)) is not None:
            print(f"{name:22} {found[0]:.4f} +- {found[1]:.4f}  (n = {len(rows)})")
    print(f"{len(rows)} runs -> {target.relative_to(root)}")


if __name__ == "__main__":
    main()
