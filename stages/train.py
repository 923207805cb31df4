"""Stage `train`: prepared data, models/embedding -> models/student, models/teacher, reports/train/.

`python stages/train.py`, or `torchrun --nproc-per-node N stages/train.py` for N processes or GPUs.
"""

from pathlib import Path

from ikddit.atomic import write_json
from ikddit.console import run_plainly
from ikddit.params import load_params
from ikddit.training.checkpoint import CheckpointFile, fingerprint, state_root
from ikddit.training.distributed import join_workers
from ikddit.training.fit import fit, save_models
from ikddit.training.loop import write_curves


def main() -> None:
    """Train teacher and student with the implicit discriminator; an interrupted run resumes by itself."""
    params = load_params()
    prepared, embedding = Path("data/prepared"), Path("models/embedding")
    keys = params.model_dump(include={"seed", "model", "mask_ratio", "lambda1", "lambda2", "train"})
    code = [Path("src/ikddit") / room for room in ("training", "networks", "diffusion", "embedding")]
    name = fingerprint(keys, [prepared / "splits.json", prepared / "train.arrow", embedding], code)
    checkpoint = CheckpointFile(state_root() / f"{name}.pt")
    with join_workers(params.train.device) as workers:
        fitted = fit(params, prepared, embedding, checkpoint, workers)
    if workers.main:
        save_models(fitted, prepared, Path("models/student"), Path("models/teacher"))
        write_curves(fitted.rows, "reports/train/curves.csv")
        write_json("reports/train/summary.json", fitted.report)
        checkpoint.remove()


if __name__ == "__main__":
    run_plainly(main)
