from pathlib import Path

import mlflow
import numpy as np
import pytest
from made_workspace import METRICS, WAFERS, StandIn, write_model
from mlflow import MlflowClient

from ikddit.atomic import read_json, write_json, write_text
from ikddit.errors import ModelError, RegistryError
from ikddit.params import Params, parse_params
from ikddit.registry.register import register, write_registration
from ikddit.registry.result import collect, data_hashes, fingerprint, git_state
from ikddit.registry.store import Store, open_store

PARAMS = Params()
pytestmark = pytest.mark.usefixtures("stand_in")


def runs(store: Store) -> list[mlflow.entities.Run]:
    client, experiment_id = open_store(store, "ikddit")
    return client.search_runs([experiment_id], order_by=["attributes.start_time"])


def aliases(store: Store) -> dict[str, int]:
    found = MlflowClient(store.uri).get_registered_model("ikddit").aliases
    return {name: int(version) for name, version in found.items()}


def test_registered_version_loads_back_and_predicts(workspace: Path, store: Store) -> None:
    answer = register(PARAMS, workspace, store)
    model = mlflow.pyfunc.load_model("models:/ikddit@challenger")
    example = model.input_example
    assert len(example) == 2
    forecast = model.predict(example, params={"n": 4, "steps": 3})
    assert forecast["m3s_nm"].tolist() == [1.5, 1.5]
    assert forecast["n"].tolist() == [4, 4]
    assert answer["version"] == 1
    assert answer["model_uri"] == "models:/ikddit/1"


def test_run_holds_params_metrics_curves_reports_and_lineage(workspace: Path, store: Store) -> None:
    answer = register(PARAMS, workspace, store)
    client = MlflowClient(store.uri)
    run = client.get_run(answer["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["mask_ratio"] == "0.5"
    assert run.data.params["train.mean.kind"] == "learned"
    assert run.data.metrics["rmse_nm"] == 1.25
    assert run.data.metrics["baselines.ridge_all.rmse_nm"] == 1.3
    assert run.data.metrics["timing.student_ms"] == 12.5
    curve = client.get_metric_history(answer["run_id"], "train/loss")
    assert [(point.step, point.value) for point in curve] == [(0, 1.0), (10, 0.5)]
    assert len(client.get_metric_history(answer["run_id"], "train/teacher")) == 1
    assert run.data.tags["data_md5"] == "0123abcd.dir"
    assert run.data.tags["md5.data/simulated"] == "4567ef01.dir"
    assert run.data.tags["dataset.sample_seed"] == "7"
    assert {f.path for f in client.list_artifacts(answer["run_id"], "reports/evaluation")} == {
        "reports/evaluation/metrics.json",
        "reports/evaluation/rmse.svg",
    }
    assert {"dvc.lock", "reports"} <= {f.path for f in client.list_artifacts(answer["run_id"])}
    version = client.get_model_version("ikddit", "1")
    assert version.tags["rmse_nm"] == "1.25"
    assert next(iter(version.tags)) == "rmse_nm"  # the list of versions in MLflow's UI keeps the order
    assert version.tags["served"] == "full"
    assert version.tags["fingerprint"] == answer["fingerprint"]


def test_second_call_changes_nothing(workspace: Path, store: Store) -> None:
    first = register(PARAMS, workspace, store)
    assert register(PARAMS, workspace, store) == first
    assert len(runs(store)) == 1
    assert len(MlflowClient(store.uri).search_model_versions("name = 'ikddit'")) == 1


def test_challenger_moves_to_the_newest_version_and_champion_stays(workspace: Path, store: Store) -> None:
    first = register(PARAMS, workspace, store)
    assert aliases(store) == {"challenger": 1, "champion": 1}
    before = (workspace / "models/student/model.safetensors").read_bytes()
    write_model(workspace, 2.5)
    assert register(PARAMS, workspace, store)["alias"] == "challenger"
    assert aliases(store) == {"challenger": 2, "champion": 1}
    forecast = mlflow.pyfunc.load_model("models:/ikddit@challenger")
    assert forecast.predict(forecast.input_example)["m3s_nm"].tolist() == [2.5, 2.5]
    # the first result again: the file names its version, and no alias that stands elsewhere
    (workspace / "models/student/model.safetensors").write_bytes(before)
    assert register(PARAMS, workspace, store) == first | {"alias": None}
    assert aliases(store) == {"challenger": 2, "champion": 1}


def test_cached_experiment_with_a_new_name_adds_one_run_to_the_same_version(
    workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = register(PARAMS, workspace, store)
    monkeypatch.setenv("DVC_EXP_NAME", "calm-fox")
    again = register(PARAMS, workspace, store)
    assert register(PARAMS, workspace, store) == again
    assert again["version"] == first["version"]
    assert [run.info.run_name for run in runs(store)] == [first["fingerprint"][:8], "calm-fox"]
    link = runs(store)[1]
    assert link.info.run_id == again["run_id"] != first["run_id"]
    assert link.data.tags["model_version"] == "1"
    assert link.data.metrics["rmse_nm"] == 1.25


@pytest.mark.parametrize(
    "culprit", ["mlflow.pyfunc.log_model", "mlflow.register_model", "mlflow.pyfunc.load_model"]
)
def test_failed_registration_leaves_no_version_and_the_next_one_succeeds(
    workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(culprit, fail)
        with pytest.raises(RegistryError, match=r"run \w+: OSError: disk full; the run is marked FAILED"):
            register(PARAMS, workspace, store)
    client, experiment_id = open_store(store, "ikddit")
    assert [run.info.status for run in runs(store)] == ["FAILED"]
    assert client.search_model_versions("name = 'ikddit'") == []
    assert client.search_logged_models([experiment_id]) == []
    assert register(PARAMS, workspace, store)["version"] == 1


def test_model_that_cannot_predict_is_not_registered(
    workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "predict_frame", lambda self, frame, **params: frame.head(0))
    with pytest.raises(ModelError, match=f"answered {min(2, WAFERS)} wafers with 0 rows"):
        register(PARAMS, workspace, store)
    assert MlflowClient(store.uri).search_model_versions("name = 'ikddit'") == []


def test_death_between_version_and_alias_is_completed_by_the_next_call(
    workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: object) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_registered_model_alias", die)
        with pytest.raises(SystemExit):
            register(PARAMS, workspace, store)
    assert register(PARAMS, workspace, store)["version"] == 1
    assert aliases(store) == {"challenger": 1, "champion": 1}
    assert [run.info.status for run in runs(store)] == ["FINISHED"]


def test_deleted_store_is_filled_again(workspace: Path, store: Store) -> None:
    first = register(PARAMS, workspace, store)
    elsewhere = Store(store.root, f"sqlite:///{store.root / 'new.db'}", store.artifact_location)
    again = register(PARAMS, workspace, elsewhere)
    assert (again["version"], again["fingerprint"]) == (1, first["fingerprint"])


def test_version_whose_files_were_deleted_is_registered_anew(workspace: Path, store: Store) -> None:
    import shutil

    register(PARAMS, workspace, store)
    shutil.rmtree(store.root / "mlruns")
    assert register(PARAMS, workspace, store)["version"] == 2


def test_registration_file_names_no_folder_of_this_machine(workspace: Path, store: Store) -> None:
    path = workspace / "reports" / "registration.json"
    write_registration(register(PARAMS, workspace, store), path)
    assert str(store.root) not in path.read_text()
    assert read_json(path)["tracking_uri"] == "sqlite:///mlflow.db"


def test_model_folder_with_a_pickle_is_refused(workspace: Path, store: Store) -> None:
    (workspace / "models" / "student" / "extra.pkl").write_bytes(b"\x80")
    with pytest.raises(ModelError, match=r"extra\.pkl: only safetensors and json"):
        register(PARAMS, workspace, store)


def test_missing_metrics_are_named(workspace: Path, store: Store) -> None:
    (workspace / "reports" / "evaluation" / "metrics.json").unlink()
    with pytest.raises(RegistryError, match=r"metrics\.json: not found; run `dvc repro`"):
        register(PARAMS, workspace, store)


def test_version_holds_no_pickle_and_carries_its_own_code(workspace: Path, store: Store) -> None:
    register(PARAMS, workspace, store)
    folder = Path(mlflow.artifacts.download_artifacts("models:/ikddit/1"))
    assert not [p for p in folder.rglob("*") if p.suffix in {".pkl", ".pickle", ".pt", ".pth"}]
    assert (folder / "code" / "ikddit" / "params.py").is_file()
    assert not list(folder.rglob("__pycache__"))
    assert "torch==" in (folder / "requirements.txt").read_text()


def test_example_gives_log_channels_in_their_own_units_and_missing_as_nan(
    workspace: Path, store: Store
) -> None:
    from ikddit.registry.package import example_frame

    frame = example_frame(workspace / "data" / "prepared", workspace / "models" / "student")
    assert frame["log_features"][0] == [32.0, 3.0]
    assert np.isnan(frame["log_features"][1][1])
    assert frame["log_lines"].tolist() == [["dose 30.1 mJ"], []]


def test_fingerprint_follows_content_not_place(workspace: Path, tmp_path: Path) -> None:
    import shutil

    model = workspace / "models" / "student"
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    settings = PARAMS.model_dump(mode="json", by_alias=True)
    base = fingerprint(model, METRICS, settings)
    assert fingerprint(copy, METRICS, settings) == base
    assert fingerprint(model, METRICS | {"rmse_nm": 1.26}, settings) != base
    assert fingerprint(model, METRICS, settings | {"mask_ratio": 0.7}) != base
    assert fingerprint(model, METRICS, settings | {"register": {"alias": "x"}}) == base
    ingest = {"engine": "dask", "workers": 4, "image_size": 64}
    same = [fingerprint(model, METRICS, settings | {"ingest": ingest | {"workers": n}}) for n in (1, 2)]
    assert same[0] == same[1]
    other = fingerprint(model, METRICS, settings | {"ingest": ingest | {"image_size": 128}})
    assert other != same[0]
    write_json(copy / "config.json", {"model": "S/8"})
    assert fingerprint(copy, METRICS, settings) != base


def test_raw_data_outside_the_repository_are_hashed_under_a_name_without_their_path(tmp_path: Path) -> None:
    lock = "stages: {ingest: {deps: [{path: /fab/export, md5: aa.dir}, {path: src/x, md5: bb}]}}"
    write_text(tmp_path / "dvc.lock", lock)
    assert data_hashes(tmp_path, "/fab/export") == {"md5.raw": "aa.dir"}


def test_hash_of_data_is_that_of_the_stage_that_wrote_them_not_of_a_later_stage_that_has_yet_to_run(
    tmp_path: Path,
) -> None:
    # While `register` runs, dvc.lock still lists the inputs of its last run.
    lock = """stages:
  prepare:
    outs: [{path: data/prepared, md5: new.dir}]
  register:
    deps: [{path: data/prepared, md5: old.dir}]
"""
    write_text(tmp_path / "dvc.lock", lock)
    assert data_hashes(tmp_path, "data/raw") == {"md5.data/prepared": "new.dir", "data_md5": "new.dir"}


def test_result_without_git_or_dvc_has_no_lineage_tags_but_a_fingerprint(workspace: Path) -> None:
    (workspace / "dvc.lock").unlink()
    result = collect(PARAMS, workspace, env={})
    assert "git_commit" not in result.tags
    assert "data_md5" not in result.tags
    assert len(result.fingerprint) == 64


def test_git_state_tells_changed_sources_but_not_rewritten_reports(tmp_path: Path) -> None:
    import subprocess

    write_text(tmp_path / "params.yaml", "seed: 0\n")
    write_text(tmp_path / "dvc.lock", "a")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    write_text(tmp_path / "dvc.lock", "b")
    assert git_state(tmp_path)["git_dirty"] == "false"
    write_text(tmp_path / "params.yaml", "seed: 1\n")
    assert git_state(tmp_path)["git_dirty"] == "true"


def test_alias_and_name_come_from_params(workspace: Path, store: Store) -> None:
    params = parse_params({"register": {"model_name": "overlay-n3", "alias": "night"}})
    register(params, workspace, store)
    found = MlflowClient(store.uri).get_registered_model("overlay-n3")
    assert {name: int(version) for name, version in found.aliases.items()} == {"champion": 1, "night": 1}


def test_requirements_are_what_the_generator_imports() -> None:
    import sys
    from importlib.metadata import packages_distributions

    import grimp

    from ikddit.registry.package import REQUIREMENTS

    graph = grimp.build_graph("ikddit", include_external_packages=True, cache_dir=None)
    needed, todo = set(), {"ikddit.generator", "ikddit.registry.pyfunc_model"}
    while todo:
        module = todo.pop()
        if module not in needed and module != "ikddit":
            needed.add(module)
            if module.startswith("ikddit."):
                todo |= graph.find_modules_directly_imported_by(module)
    packages = {name for name in needed if not name.startswith("ikddit")} - sys.stdlib_module_names
    # the first fits an embedding, whose vectors are buffers of the model; the second draws what only the CLI asks for
    packages -= {"sentence_transformers", "matplotlib"}
    owners = packages_distributions()
    assert {name for name in packages if not set(owners[name]) & set(REQUIREMENTS)} == set()
    provided = {owner for name in packages for owner in owners[name]}
    assert set(REQUIREMENTS) - provided == set()


def test_version_serves_what_the_gate_decided_and_the_train_stage_keeps_its_folder(
    workspace: Path, store: Store
) -> None:
    config = workspace / "models" / "student" / "config.json"
    write_json(config, {"model": "T/8", "served": "full"})
    write_json(workspace / "reports" / "evaluation" / "metrics.json", {"rmse_nm": 1.0, "served": "masked"})
    answer = register(PARAMS, workspace, store)
    assert MlflowClient(store.uri).get_model_version("ikddit", "1").tags["served"] == "masked"
    folder = Path(mlflow.artifacts.download_artifacts(answer["model_uri"], tracking_uri=store.uri))
    packaged = next(path for path in folder.rglob("config.json") if path.parent.name == "student")
    assert read_json(packaged)["served"] == "masked"
    assert read_json(config)["served"] == "full"


def test_a_measured_speed_makes_no_new_version_but_the_decision_does(workspace: Path) -> None:
    model, settings = workspace / "models" / "student", {"seed": 0}
    metrics = {"rmse_nm": 1.0, "masked": {"fid_ratio": 1.0, "speedup": 1.2}, "served": "masked"}
    name = fingerprint(model, metrics, settings)
    faster = metrics | {"masked": {"fid_ratio": 1.0, "speedup": 1.3}}
    assert fingerprint(model, faster, settings) == name
    assert fingerprint(model, metrics | {"served": "full"}, settings) != name
    assert fingerprint(model, metrics | {"rmse_nm": 1.1}, settings) != name
