"""Stage `fid_reference`: all measured maps -> statistics that generated maps are compared with, data/fid/reference/."""

import logging

from ikddit.atomic import read_json
from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.normaliser import Normaliser
from ikddit.embedding.fit import load_embedding
from ikddit.evaluation.fid.extractors import make_extractors
from ikddit.evaluation.fid.maps import measured_maps, render_scale_nm
from ikddit.evaluation.fid.reference import build_reference
from ikddit.evaluation.fid.weights import NoWeights, find_weights
from ikddit.params import load_params

log = logging.getLogger("ikddit")
SPLITS = ("train", "val", "test", "test_unseen")
SEED = 0
"""Of halves and subsets: the floor is the same beside students of any seed."""


def main() -> None:
    """Take the features of every measured map once; without Inception weights, of the other spaces only."""
    params = load_params()
    sigma_nm = Normaliser.load("data/prepared/normaliser.json").sigma_nm
    declared = read_json("data/prepared/dataset.json").get("scale_nm")
    scale_nm = render_scale_nm(params.fid.scale_nm, declared, sigma_nm)
    sets = [measured_maps(PreparedSplit.open(f"data/prepared/{name}.arrow"), name) for name in SPLITS]
    weights = find_weights(params.fid.weights, params.fid.timeout_s)
    if isinstance(weights, NoWeights):
        log.warning("no Inception figures: %s", weights.reason)
    embedding = load_embedding("models/embedding")
    extractors = make_extractors(params.fid, weights, embedding, sigma_nm, scale_nm)
    parts = [part for part in sets if len(part)]
    build_reference(parts, extractors, params.fid, scale_nm, SEED).save("data/fid/reference")


if __name__ == "__main__":
    run_plainly(main)
