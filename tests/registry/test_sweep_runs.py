"""`register.version: false`: a run for comparison, and nothing that serving or the registry would see."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from ikddit.params import Params, parse_params
from ikddit.registry.register import register
from ikddit.registry.store import Store, open_store

SWEEP = parse_params({"register": {"version": False, "sweep": "mask"}})
pytestmark = pytest.mark.usefixtures("stand_in")


def test_a_run_without_a_version_holds_the_result_and_its_sweep(workspace: Path, store: Store) -> None:
    answer = register(SWEEP, workspace, store)
    client = MlflowClient(store.uri)
    run = client.get_run(answer["run_id"])
    assert (run.info.status, run.data.tags["sweep"]) == ("FINISHED", "mask")
    assert run.data.metrics["rmse_nm"] == 1.25
    assert client.search_registered_models() == []
    assert (answer["version"], answer["alias"], answer["model_uri"]) == (None, None, None)


def test_asking_again_makes_no_second_run_but_for_another_experiment(
    workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = register(SWEEP, workspace, store)
    assert register(SWEEP, workspace, store)["run_id"] == first["run_id"]
    monkeypatch.setenv("DVC_EXP_NAME", "mask-0.5")
    named = register(SWEEP, workspace, store)
    assert named["run_id"] != first["run_id"]
    assert register(SWEEP, workspace, store)["run_id"] == named["run_id"]
    client, experiment = open_store(store, "ikddit")
    assert len(client.search_runs([experiment])) == 2


def test_aliases_stay_where_they_are(workspace: Path, store: Store) -> None:
    version = register(Params(), workspace, store)["version"]
    register(SWEEP, workspace, store)
    found = MlflowClient(store.uri).get_registered_model("ikddit").aliases
    assert {name: int(number) for name, number in found.items()} == {
        "challenger": version,
        "champion": version,
    }
    assert len(MlflowClient(store.uri).search_model_versions("name = 'ikddit'")) == 1


def test_the_same_result_can_be_given_a_version_later(workspace: Path, store: Store) -> None:
    register(SWEEP, workspace, store)
    assert register(Params(), workspace, store)["version"] == 1
