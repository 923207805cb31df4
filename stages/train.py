"""Stage `train`: prepared data, models/embedding -> models/student, models/teacher, reports/train/.

`python stages/train.py`, or `torchrun --nproc-per-node N stages/train.py` for N processes or GPUs.
"""

from pathlib import Path

from ikddit.atomic import write_json
from ikddit.console import run_plainly
from ikddit.params import Params, load_params
from ikddit.training.checkpoint import CheckpointFile, fingerprint, state_root
from ikddit.training.distributed import join_workers
from ikddit.training.fit import fit, save_models
from ikddit.training.loop import write_curves

PREPARED = (
    "train.arrow",
    "val.arrow",
    "splits.json",
    "normaliser.json",
    "vocabularies.json",
    "tokenizer.json",
)
ROOMS = ("overlay", "dataset", "embedding", "networks", "diffusion", "training")


def main() -> None:
    """Train teacher and student with the implicit discriminator; an interrupted run resumes by itself."""
    params = load_params()
    prepared, embedding = Path("data/prepared"), Path("models/embedding")
    checkpoint = CheckpointFile(state_root() / f"{run_key(params, prepared, embedding)}.pt")
    with join_workers(params.train.device) as workers:
        fitted = fit(params, prepared, embedding, checkpoint, workers)
    if workers.main:
        save_models(fitted, prepared, Path("models/student"), Path("models/teacher"))
        write_curves(fitted.rows, "reports/train/curves.csv")
        write_json("reports/train/summary.json", fitted.report)
        checkpoint.remove()


def run_key(params: Params, prepared: Path, embedding: Path) -> str:
    """Name of the run's checkpoint: settings, inputs and code, all that training follows from."""
    keys = params.model_dump(include={"seed", "model", "mask_ratio", "lambda1", "lambda2", "train"})
    inputs = [prepared / name for name in PREPARED]
    return fingerprint(keys, [*inputs, embedding], [Path("src/ikddit") / room for room in ROOMS])


if __name__ == "__main__":
    run_plainly(main)
