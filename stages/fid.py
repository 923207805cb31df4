"""Stage `fid`: generated maps against the measured ones as distributions -> reports/evaluation/fid.json."""

from ikddit.atomic import write_json
from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.normaliser import Normaliser
from ikddit.embedding.fit import load_embedding
from ikddit.evaluation.fid.extractors import make_extractors
from ikddit.evaluation.fid.reference import Reference
from ikddit.evaluation.fid.score import generated_maps, score, weights_as_in
from ikddit.evaluation.generated import open_samples
from ikddit.params import load_params


def main() -> None:
    """Score the generated maps; without Inception weights, in the other spaces only, and say so."""
    params = load_params()
    reference = Reference.load("data/fid/reference")
    test = PreparedSplit.open("data/prepared/test.arrow")
    generated = generated_maps(*open_samples("data/generated"), test)
    # features of one kind of arithmetic compare, whatever this machine would choose
    settings = params.fid.model_copy(update={"dtype": reference.facts.get("dtype", params.fid.dtype)})
    extractors = make_extractors(
        settings,
        weights_as_in(reference, settings),
        load_embedding("models/embedding"),
        Normaliser.load("data/prepared/normaliser.json").sigma_nm,
        reference.facts["scale_nm"],
    )
    figures = score(generated, reference, extractors, settings, params.seed)
    write_json("reports/evaluation/fid.json", figures)


if __name__ == "__main__":
    run_plainly(main)
