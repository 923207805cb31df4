"""`make faults KILLS=100`: kill -9 the pipeline at random moments; every time it must come to what it would have been.

In a scratch checkout with the tiny profile `dvc repro` runs once undisturbed. Then, again and again: a stage is made
to run anew, `dvc repro` (now and then the Prefect flow, or the retraining) is started and killed with everything it
started. No output may then be half-written, the stores of MLflow and Prefect must answer, and a plain `dvc repro` must
finish with the data, models and metrics of the undisturbed run. Ends with 1 on any difference.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "pipeline"), str(HERE.parents[1])]

from checkouts import ROOT, clean_environment  # noqa: E402
from killing import House, Kill, Moment, Runner  # noqa: E402
from outcome import differences, outcome  # noqa: E402
from retraining import RetrainHouse  # noqa: E402

MOMENTS: tuple[tuple[Moment, int], ...] = (("before", 1), ("in", 6), ("after", 3))
"""With their weights: half of a stage's seconds are its imports, and DVC's own work is short."""
AFTER_S = 0.4
"""DVC hashes, links and notes the outputs of a tiny stage in about this time."""
BEFORE_S = 3.0
FLOW_SHARE = 0.15
RETRAIN_EVERY = 25
"""Kills per one of the retraining, which takes minutes."""


@dataclass
class Round:
    """One kill and what came of it."""

    number: int
    runner: str
    stage: str
    moment: str
    place: str = ""
    seconds: float = 0.0
    resumed: bool = False
    by_hand: str = ""
    """What `python -m pipelines.mend` had to do before `dvc repro` ran again."""
    partly: list[str] = field(default_factory=list)
    """Outputs that DVC was removing or linking."""
    wrong: list[str] = field(default_factory=list)

    @property
    def recovered(self) -> bool:
        """Whether all is as in the undisturbed run."""
        return not self.wrong


def one_round(house: House, kill: Kill, number: int, with_outputs: bool) -> Round:
    """Kill once, look, recover, look again."""
    done = Round(number, kill.runner, kill.stage, kill.moment)
    start = time.monotonic()
    killed = house.kill_in_time(kill, with_outputs)
    done.place = killed.place
    wrong, done.partly = house.half_written(killed)
    done.wrong += [f"half-written: {path}" for path in wrong]
    done.wrong += house.stores()
    code, said, done.by_hand = house.come_back()
    done.resumed = "resuming at step" in said
    if code != 0:
        done.wrong.append(f"dvc repro: exit code {code}: {said[-2000:]}")
    else:
        done.wrong += differences(house.undisturbed, outcome(house.root, house.outputs))
        done.wrong += [f"scratch left: {path}" for path in house.scratch_left()]
        done.wrong += house.stores() + house.registered()
    done.seconds = time.monotonic() - start
    return done


def plan(house: House, kills: int, seed: int) -> list[tuple[Kill, bool]]:
    """The kills: every stage in turn, in a new order each time, at a moment drawn by its weight."""
    draw, queue, found = random.Random(seed), list[str](), []
    for _ in range(kills):
        if not queue:
            queue = draw.sample(house.stages, len(house.stages))
        stage = queue.pop()
        moment = draw.choices([name for name, _ in MOMENTS], [weight for _, weight in MOMENTS])[0]
        runner: Runner = "flow" if draw.random() < FLOW_SHARE else "dvc"
        most = {"before": BEFORE_S, "in": house.seconds[stage], "after": AFTER_S}[moment]
        found.append((Kill(stage, moment, draw.uniform(0.0, most), runner), draw.random() < 0.5))
    return found


def table(rounds: list[Round]) -> str:
    """Place -> kills -> recovered, and what else there is to say."""
    kills = Counter(done.place for done in rounds)
    well = Counter(done.place for done in rounds if done.recovered)
    lines = [f"{'killed in':<28}{'kills':>7}{'recovered':>11}"]
    lines += [f"{place:<28}{count:>7}{well[place]:>11}" for place, count in sorted(kills.items())]
    lines += [f"{'all':<28}{len(rounds):>7}{sum(well.values()):>11}", ""]
    runners = Counter(done.runner for done in rounds)
    lines.append("started as: " + ", ".join(f"{name} {count}" for name, count in sorted(runners.items())))
    lines.append(f"training resumed at a checkpoint: {sum(done.resumed for done in rounds)}")
    lines.append(
        f"outputs that DVC had half removed or linked, and completed: {sum(map(len, (d.partly for d in rounds)))}"
    )
    lines.append(f"needed `python -m pipelines.mend`: {sum(bool(done.by_hand) for done in rounds)}")
    lines += [f"  round {d.number}, {d.place}: {d.by_hand}" for d in rounds if d.by_hand]
    lines += [f"WRONG in round {d.number}, {d.place}: {reason}" for d in rounds for reason in d.wrong]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, kill, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of stages, moments and waits")
    parser.add_argument("--folder", type=Path, help="scratch; kept, and used again, if named")
    parser.add_argument("--json", type=Path, default=ROOT / ".ikddit" / "faults" / "kills.json")
    parser.add_argument("--no-retrain", action="store_true", help="leave the retraining out (minutes)")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="ikddit-faults-"))
    rounds: list[Round] = []
    final: list[str] = []
    try:
        env = clean_environment()
        house = House.build((folder / "checkout").resolve(), env)
        print(f"undisturbed run in {house.root}", flush=True)
        house.run_undisturbed()
        retrainings = 0 if arguments.no_retrain else max(1, arguments.kills // RETRAIN_EVERY)
        for number, (kill, with_outputs) in enumerate(
            plan(house, arguments.kills - retrainings, arguments.seed), 1
        ):
            note(one_round(house, kill, number, with_outputs), rounds, arguments.json)
        final += [f"DVC's cache: {name} is not what its name says" for name in house.damaged_cache()]
        if any(done.runner == "flow" for done in rounds):
            final += house.run_flow()
        if retrainings:
            play = RetrainHouse.build((folder / "retrain").resolve(), env)
            draw = random.Random(arguments.seed)
            for number in range(len(rounds) + 1, arguments.kills + 1):
                start = time.monotonic()
                place, wrong = play.kill_and_recover(draw.uniform(0.0, play.seconds))
                done = Round(number, "retrain", "retrain", "in", place, time.monotonic() - start, wrong=wrong)
                note(done, rounds, arguments.json)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print("\n" + table(rounds) + "".join(f"\nWRONG at the end: {reason}" for reason in final))
    print(f"written to {os.path.relpath(arguments.json)}")
    raise SystemExit(1 if final or not all(done.recovered for done in rounds) else 0)


def note(done: Round, rounds: list[Round], path: Path) -> None:
    """Keep a round, say it, and write all so far: a run that is stopped has its table too."""
    rounds.append(done)
    said = "recovered" if done.recovered else "WRONG: " + "; ".join(done.wrong)
    print(f"{done.number:>4} {done.runner:<8}{done.place:<28}{done.seconds:6.1f} s  {said}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps([asdict(one) | {"recovered": one.recovered} for one in rounds], indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
