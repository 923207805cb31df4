"""Stage `fid_reference`: all measured maps -> statistics that generated maps are compared with, data/fid/reference/."""

from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.splits import SPLITS
from ikddit.device import pick_device
from ikddit.embedding.fit import load_embedding
from ikddit.evaluation.fid.extractors import own_extractors
from ikddit.evaluation.fid.maps import measured_maps
from ikddit.evaluation.fid.measured import MeasuredFeatures
from ikddit.evaluation.fid.reference import build_reference
from ikddit.params import load_params

SEED = 0
"""Of halves and subsets: the floor is the same beside students of any seed."""


def main() -> None:
    """Put the measured maps of all splits together."""
    params = load_params().fid
    sigma_nm = Normaliser.load("data/prepared/normaliser.json").sigma_nm
    sets = [measured_maps(PreparedSplit.open(f"data/prepared/{name}.arrow"), name) for name in SPLITS]
    own = own_extractors(
        load_embedding("models/embedding"), sigma_nm, pick_device(params.device, "fid.device")
    )
    measured = MeasuredFeatures.open("data/fid/measured")
    parts = [part for part in sets if len(part)]
    build_reference(parts, own, measured, params, SEED).save("data/fid/reference")


if __name__ == "__main__":
    run_plainly(main)
