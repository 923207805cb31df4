import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from checkouts import ROOT, wait_until


def test_stages_come_from_dvc_yaml_in_an_order_that_can_be_run() -> None:
    from pipelines.reproduce import read_stages

    stages = read_stages(ROOT)
    names = list(stages)
    assert names[0] == "simulate"
    assert names[-1] == "register"
    for name, needs in stages.items():
        assert all(names.index(need) < names.index(name) for need in needs)


def test_stopping_the_flow_stops_the_running_stage(toy_checkout: Path, clean_env: dict[str, str]) -> None:
    (toy_checkout / "toy_stage.py").write_text(
        "import os, time; open('pid', 'w').write(str(os.getpid())); os.rename('pid', 'stage.pid'); time.sleep(300)"
    )
    log = toy_checkout / "flow.log"
    with log.open("wb") as out:
        flow = subprocess.Popen(
            [sys.executable, "-m", "pipelines.reproduce"],
            cwd=toy_checkout,
            env=clean_env,
            stdout=out,
            stderr=out,
        )
    wait_until((toy_checkout / "stage.pid").exists, 150, log)
    stage = int((toy_checkout / "stage.pid").read_text())
    assert psutil.pid_exists(stage)
    flow.send_signal(signal.SIGTERM)
    flow.wait(60)
    wait_until(lambda: not psutil.pid_exists(stage), 30, log)
    assert flow.returncode != 0


def test_wrong_params_stop_the_flow_before_any_stage(toy_checkout: Path) -> None:
    from pipelines.reproduce import reproduce

    from ikddit.errors import ParamsError

    (toy_checkout / "params.yaml").write_text("mask_ration: 0.7\n")
    with pytest.raises(ParamsError, match="did you mean `mask_ratio`"):
        reproduce.fn(toy_checkout)
    assert not (toy_checkout / "first.txt").exists()
