"""Moves of the alias `champion`: what they record, refuse, survive and undo."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from made_workspace import METRICS
from mlflow import MlflowClient
from typer.testing import CliRunner

from ikddit.atomic import write_json
from ikddit.cli import app
from ikddit.errors import RegistryError
from ikddit.params import Params, parse_params
from ikddit.registry import promotion
from ikddit.registry.gate import Evidence, PairedDifference
from ikddit.registry.promotion import (
    ChampionChanged,
    Move,
    PromotionRefused,
    UnusableVersionError,
    evidence_of_champion,
    promote,
    rollback,
)
from ikddit.registry.register import register
from ikddit.registry.store import Store, open_store

GOOD = Evidence(0.78, 0.90, 0.90, 0.97, True, "a.dir", 1000)


@pytest.fixture
def made(store: Store) -> Callable[..., MlflowClient]:
    """Registers one version per RMSE, best last, each with an empty package; nobody is champion."""

    def make(*rmses: float) -> MlflowClient:
        client, _ = open_store(store, "ikddit")
        client.create_registered_model("ikddit")
        for number, rmse in enumerate(rmses, 1):
            folder = store.root / "packages" / str(number)
            folder.mkdir(parents=True)
            (folder / "MLmodel").write_text("")
            tags = replace(GOOD, rmse_nm=rmse).as_tags()
            client.create_model_version("ikddit", folder.as_uri(), tags=tags)
        return client

    return make


def history(store: Store) -> list[Move]:
    """All moves of the alias, oldest first, as the registered model's tags tell them."""
    tags = open_store(store, "ikddit")[0].get_registered_model("ikddit").tags
    return [Move(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(promotion.MOVE_TAG)]


def champion_version(store: Store) -> int:
    found = open_store(store, "ikddit")[0].get_model_version_by_alias("ikddit", promotion.CHAMPION)
    return int(found.version)


def line(store: Store) -> list[tuple[str, int | None, int]]:
    return [(move.action, move.before, move.version) for move in history(store)]


def test_rollback_walks_back_along_the_champions_and_stops_at_the_first(made, store: Store) -> None:
    made(0.9, 0.8, 0.7)
    for version in (1, 2, 3):
        promote(version, "better", store=store)
    assert rollback("noisy", store=store).version == 2
    assert rollback("still", store=store).version == 1
    with pytest.raises(RegistryError, match="no champion before version 1"):
        rollback("again", store=store)
    assert champion_version(store) == 1
    assert line(store) == [
        ("promote", None, 1),
        ("promote", 1, 2),
        ("promote", 2, 3),
        ("rollback", 3, 2),
        ("rollback", 2, 1),
    ]
    # a promotion after a rollback goes back to where it came from, not to what was given up
    promote(3, "mended", store=store)
    assert rollback("no", store=store).version == 1


def test_a_move_says_when_who_why_and_what_the_gate_said(made, store: Store) -> None:
    client = made(0.9)
    move = promote(1, " first of its kind ", store=store, by="fab-1")
    assert (move.number, move.reason, move.by, move.forced) == (1, "first of its kind", "fab-1", False)
    assert move.at.endswith("+00:00")
    assert move.gate is not None
    assert any("best linear baseline" in reason for reason in move.gate["passed"])
    assert history(store) == [move]
    tags = client.get_model_version("ikddit", "1").tags
    assert tags["champion.why"] == "promote: first of its kind"
    assert (tags["champion.since"], tags["champion.by"]) == (move.at, "fab-1")


def test_what_the_gate_refuses_stays_challenger_unless_forced(made, store: Store) -> None:
    made(0.7, 0.8)
    promote(1, "first", store=store)
    with pytest.raises(
        PromotionRefused, match=r"version 2 stays challenger, champion is 1: RMSE 0\.8000"
    ) as no:
        promote(2, "newer", store=store)
    assert no.value.verdict.failed == ("RMSE 0.8000 nm against the champion's 0.7000 nm",)
    assert champion_version(store) == 1
    forced = promote(2, "the other drifted", store=store, force=True)
    assert forced.forced
    assert forced.gate is not None
    assert not forced.gate["promote"]


def test_a_paired_comparison_is_kept_with_the_version_and_only_holds_against_its_champion(
    made, store: Store
) -> None:
    made(0.7, 0.8, 0.6)
    promote(1, "first", store=store)
    worse = PairedDifference(0.1, 0.05, 0.15, 100)
    with pytest.raises(PromotionRefused):
        promote(3, "looks better", store=store, paired=worse)
    with pytest.raises(PromotionRefused, match=r"0\.1000 nm against the champion on 100 wafers"):
        promote(3, "no comparison given", store=store)
    promote(2, "on later wafers", store=store, paired=PairedDifference(-0.1, -0.15, -0.05, 100))
    # the comparison with version 1 says nothing about version 2
    assert promote(3, "better", store=store).version == 3


def test_a_comparison_with_another_champion_than_the_present_one_moves_nothing(made, store: Store) -> None:
    client = made(0.9, 0.8, 0.7)
    promote(1, "first", store=store)
    better = PairedDifference(-0.1, -0.15, -0.05, 100)
    promote(2, "meanwhile", store=store)
    with pytest.raises(ChampionChanged, match="champion is version 2 by now, not 1, which version 3 was"):
        promote(3, "hours later", store=store, paired=better, against=1, force=True)
    assert champion_version(store) == 2
    assert promotion.PAIRED_TAG not in client.get_model_version("ikddit", "3").tags
    assert promote(3, "compared anew", store=store, paired=better, against=2).version == 3


@pytest.mark.parametrize(
    ("lost", "use"),
    [
        ("registered_model_aliases", lambda store: evidence_of_champion(MlflowClient(store.uri), "ikddit")),
        ("registered_models", lambda store: promote(2, "better", store=store)),
        ("model_versions", lambda store: promote(2, "better", store=store)),
        ("model_versions", lambda store: rollback("noisy", store=store)),
    ],
)
def test_a_store_that_fails_is_not_an_empty_one(made, store: Store, lost: str, use) -> None:
    made(0.9, 0.8)
    promote(1, "first", store=store)
    promote(2, "second", store=store)
    with closing(sqlite3.connect(store.root / "mlflow.db")) as database:
        database.execute(f"alter table {lost} rename to elsewhere")
    with pytest.raises(RegistryError, match="no answer from the MLflow store"):
        use(store)


def test_a_champion_before_whose_files_cannot_be_looked_at_is_not_passed_over(
    made, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    made(0.9, 0.8, 0.7)
    for version in (1, 2, 3):
        promote(version, "better", store=store)
    address = "http://127.0.0.1:1/api/2.0/mlflow-artifacts/artifacts/package"
    with closing(sqlite3.connect(store.root / "mlflow.db")) as database, database:
        database.execute("update model_versions set storage_location = ? where version = 2", [address])
    with pytest.raises(RegistryError, match="no answer from the MLflow store"):
        rollback("noisy", store=store)
    assert champion_version(store) == 3


def test_a_user_without_a_name_is_known_by_number(
    made, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(0.9)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert promote(1, "first", store=store).by == f"user {os.getuid()}"


def test_versions_that_cannot_be_served_are_neither_promoted_nor_rolled_back_to(made, store: Store) -> None:
    client = made(0.9, 0.8, 0.7, 0.6)
    for version in (1, 2, 3):
        promote(version, "better", store=store)
    (store.root / "packages" / "4" / "MLmodel").unlink()
    with pytest.raises(RegistryError, match="version 4 has lost its files"):
        promote(4, "better", store=store)
    with pytest.raises(UnusableVersionError, match="has no version 7"):  # its name is printed
        promote(7, "better", store=store)
    with pytest.raises(RegistryError, match="version 3 is the champion already"):
        promote(3, "better", store=store)
    with pytest.raises(RegistryError, match="a reason"):
        promote(1, "  ", store=store)
    client.delete_model_version("ikddit", "2")
    assert rollback("bad", store=store).version == 1


def test_without_the_model_there_is_nothing_to_move(store: Store) -> None:
    with pytest.raises(RegistryError, match=r"no model `ikddit` in sqlite:///mlflow\.db; run `make repro`"):
        promote(1, "first", store=store)


def test_an_alias_moved_by_other_means_is_found_and_can_be_rolled_back(made, store: Store) -> None:
    client = made(0.9, 0.8)
    promote(1, "first", store=store)
    client.set_registered_model_alias("ikddit", "champion", "2")
    assert rollback("not meant", store=store).version == 1
    assert line(store) == [("promote", None, 1), ("found", 1, 2), ("rollback", 2, 1)]


@pytest.mark.parametrize(
    ("dies_in", "champion", "moves"),
    [
        ("set_registered_model_alias", 1, [("promote", None, 1)]),
        ("_record", 2, [("promote", None, 1), ("promote", 1, 2)]),
        ("delete_registered_model_tag", 2, [("promote", None, 1), ("promote", 1, 2)]),
    ],
)
def test_after_a_death_the_history_says_what_happened(
    made, store: Store, monkeypatch: pytest.MonkeyPatch, dies_in: str, champion: int, moves: list[object]
) -> None:
    made(0.9, 0.8, 0.7)
    promote(1, "first", store=store)

    def die(*args: object) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as broken:
        broken.setattr(promotion if dies_in == "_record" else MlflowClient, dies_in, die)
        with pytest.raises(SystemExit):
            promote(2, "better", store=store)
    assert champion_version(store) == champion
    assert promote(3, "best", store=store).number == len(line(store))
    assert line(store) == [*moves, ("promote", champion, 3)]
    assert rollback("noisy", store=store).version == champion


PROMOTE = """
import sys
from pathlib import Path
from ikddit.registry.promotion import promote
from ikddit.registry.store import Store
root = Path(sys.argv[1])
promote(int(sys.argv[2]), "at once", store=Store(root, f"sqlite:///{root / 'mlflow.db'}", None), force=True)
"""


def test_two_promotions_at_once_both_stand_in_the_history(made, store: Store) -> None:
    made(0.9, 0.8, 0.7)
    promote(1, "first", store=store)
    both = [
        subprocess.Popen([sys.executable, "-c", PROMOTE, str(store.root), version]) for version in ("2", "3")
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    moves = line(store)
    assert [move[2] for move in moves[1:]] in ([2, 3], [3, 2])
    assert moves[2][1] == moves[1][2]  # the later one saw the earlier one


@pytest.mark.usefixtures("stand_in")
def test_the_first_version_becomes_champion_with_the_gates_word_recorded(
    workspace: Path, store: Store
) -> None:
    register(Params(), workspace, store)
    (move,) = history(store)
    assert (move.action, move.version, move.by) == ("first", 1, "register")
    assert move.forced  # this workspace has no validation report
    tags = MlflowClient(store.uri).get_model_version("ikddit", "1").tags
    assert tags["gate"] == "keep"
    assert "whether its data passed validation is not known" in tags["gate_reasons"]
    assert tags["linear_rmse_nm"] == "1.3"


@pytest.mark.usefixtures("stand_in")
def test_the_first_version_is_judged_by_the_limits_of_the_params(workspace: Path, store: Store) -> None:
    write_json(workspace / "reports" / "validation.json", {"passed": True})
    write_json(
        workspace / "reports" / "evaluation" / "metrics.json",
        METRICS | {"coverage_90": 0.7, "m3s_coverage_90": 0.7},
    )
    promotion = {"coverage_low": 0.6, "m3s_coverage_low": 0.6}
    register(parse_params({"register": {"promotion": promotion}}), workspace, store)
    (move,) = history(store)
    assert not move.forced


def test_commands_promote_and_roll_back_and_say_so(
    made, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(0.9, 0.8)
    (store.root / "params.yaml").write_text("seed: 0\n")
    monkeypatch.setenv("DVC_ROOT", str(store.root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*args: str) -> str:
        result = CliRunner().invoke(app, list(args))
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "version none -> 1 (promote" in run("promote", "1", "--reason", "first")
    assert "yes: RMSE 0.8000 nm against the champion's 0.9000 nm" in run("promote", "2", "--reason", "better")
    refused = CliRunner().invoke(app, ["promote", "1", "--reason", "older"])
    assert isinstance(refused.exception, PromotionRefused)
    unknown = CliRunner().invoke(app, ["promote", "9", "--reason", "typo"])
    assert type(unknown.exception).__name__ == "UnusableVersionError"  # the first word that the person reads
    assert "version 1 -> 2" not in run("rollback", "--reason", "noisy")
    newest, first = json.loads(run("models", "--json"))
    assert (newest["aliases"], first["aliases"]) == ([], ["champion"])
    table = run("models")
    assert "rollback: noisy" in table
    assert "promote: better" in table
