"""kill -9 at chosen moments: nothing is half-written, and `dvc repro` comes to what it would have been.

`make faults KILLS=100` does the same at random moments of the whole pipeline (kill_anywhere.py).
"""

import fcntl
import random
import shutil
from pathlib import Path

import pytest
from checkouts import git, run
from killing import NOTHING, STEPS, House, Kill
from outcome import differences, outcome

SEED = 0


@pytest.fixture(scope="module")
def house(finished: Path, clean_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("house") / "checkout"
    shutil.copytree(finished, folder, symlinks=True)
    house = House(folder, clean_env)
    house.take_as_undisturbed()
    return house


def test_cut_dvc_lock_is_mended_and_nothing_runs_again(house: House) -> None:
    house.target = "ingest"
    lock = house.root / "dvc.lock"
    whole = lock.read_bytes()
    try:
        lock.write_bytes(whole[: whole.index(b"outs:\n") + len(b"outs:\n")])
        code, said = house.recover()
        assert code != 0
        assert "dvc.lock" in said
        assert "dvc.lock: left by a killed DVC" in house.mend()
        code, said = house.recover()
        assert code == 0, said
        assert "Running stage" not in said, "the run cache knows them"
        assert differences(house.undisturbed, outcome(house.root, house.outputs)) == []
    finally:
        lock.write_bytes(whole)


@pytest.mark.parametrize(
    ("stage", "moment", "most_s"),
    [("ingest", "in", 2.0), ("embed", "after", 0.4), ("prepare", "before", 2.0)],
)
def test_killed_run_leaves_nothing_half_and_the_next_one_finishes(
    stage: str, moment: str, most_s: float, house: House
) -> None:
    wait_s = random.Random(f"{SEED} {stage}").uniform(0.2, most_s)
    house.target = stage
    killed = house.kill_in_time(Kill(stage, moment, wait_s), with_outputs=True)  # type: ignore[arg-type]
    where = f"{killed.place}, {wait_s:.2f} s"
    assert killed.place != NOTHING, where
    assert house.half_written(killed)[0] == [], where
    code, said, _ = house.come_back()
    assert code == 0, where + said
    assert differences(house.undisturbed, outcome(house.root, house.outputs)) == [], where
    assert house.scratch_left() == [], where


def test_killed_registration_leaves_a_store_that_answers_and_no_half_version(house: House) -> None:
    house.target = "register"
    shutil.rmtree(house.root / "mlruns")
    for path in house.root.glob("mlflow.db*"):
        path.unlink()
    wait_s = random.Random(SEED).uniform(2.0, 6.0)
    killed = house.kill_in_time(Kill("register", "in", wait_s), with_outputs=True)
    assert killed.place != NOTHING
    assert house.stores() == [], killed.place
    code, said, _ = house.come_back()
    assert code == 0, said
    assert house.registered() == [], killed.place
    assert differences(house.undisturbed, outcome(house.root, house.outputs)) == []


def test_killed_training_goes_on_at_its_checkpoint_to_the_same_model(house: House) -> None:
    params = house.root / "params.yaml"
    before = params.read_text()
    try:
        for short, long in STEPS.items():
            params.write_text(params.read_text().replace(f"  {short}\n", f"  {long}\n"))
        house.target = "train"
        killed = house.kill(Kill("train", "checkpoint", 0.0))
        assert killed.place == "train"
        assert house.half_written(killed)[0] == []
        code, said, _ = house.come_back()
        assert code == 0, said
        assert "resuming at step" in said
        trained = [output for output in house.outputs if output.stage == "train"]
        resumed = outcome(house.root, trained)
        house.forget("train", with_outputs=True)
        run(house.root, house.env, "dvc", "repro", "train", timeout_s=900)
        assert differences(outcome(house.root, trained), resumed) == []
        assert house.scratch_left() == []
        assert not list((house.root / ".ikddit" / "checkpoints").glob("*"))
    finally:
        params.write_text(before)


def test_index_lock_of_a_killed_dvc_is_mended_and_that_of_a_git_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil
    from pipelines.mend import mend

    git(tmp_path, "init", "-q")
    lock = tmp_path / ".git" / "index.lock"
    lock.touch()
    with monkeypatch.context() as patched:
        patched.setattr(psutil.Process, "name", lambda process: "git")
        patched.setattr(psutil.Process, "cwd", lambda process: str(tmp_path / "docs"))
        assert mend(tmp_path, pytest.fail) == []
    said: list[str] = []
    assert mend(tmp_path, said.append) == [".git/index.lock"]
    assert said == [".git/index.lock: left by a killed DVC, removed"]
    assert not lock.exists()


@pytest.mark.parametrize("content", ["", '{"write": {"/checkout/data'])
def test_note_of_a_killed_dvc_is_mended(content: str, house: House) -> None:
    """DVC writes it in place; a kill in that moment is too rare to wait for."""
    house.target = "ingest"
    (house.root / ".dvc" / "tmp" / "rwlock").write_text(content)
    code, said = house.recover()
    assert code != 0
    assert "Unable to read RWLock-file" in said
    assert ".dvc/tmp/rwlock: left by a killed DVC" in house.mend()
    assert house.recover()[0] == 0


def test_merge_conflict_and_files_of_a_working_dvc_are_left_alone(tmp_path: Path) -> None:
    from pipelines.mend import mend

    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n")
    assert mend(tmp_path, pytest.fail) == []
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text("")
    with (tmp_path / ".dvc" / "tmp" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert mend(tmp_path, pytest.fail) == []
    said: list[object] = []
    assert mend(tmp_path, said.append) == [".dvc/tmp/rwlock"]
    assert len(said) == 1
    assert (tmp_path / "dvc.lock").is_file()
