"""Stage `embed`: prepared data -> models/embedding/, reports/embedding.json."""

import torch

from ikddit.atomic import write_json
from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.device import pick_device
from ikddit.embedding.fit import (
    embedding_config,
    fit_embedding,
    retrieval_batches,
    retrieval_metrics,
    save_embedding,
)
from ikddit.mpom.parts import read_facts
from ikddit.params import load_params
from ikddit.simulator.likelihood import exact_retrieval


def exact_metrics(test: PreparedSplit) -> dict[str, float]:
    """What the simulator's likelihood retrieves in the first of the embedding's batches; nothing on real data."""
    facts = read_facts("data/prepared")
    if "seeds" not in facts:
        return {}
    barcodes = test.barcode
    return exact_retrieval(facts, [barcodes[i] for i in next(retrieval_batches(len(test)))])


def main() -> None:
    """Pretrain the unified contrastive embedding on train, measure retrieval on test."""
    params = load_params()
    normaliser = Normaliser.load("data/prepared/normaliser.json")
    vocabularies = Vocabularies.load("data/prepared/vocabularies.json")
    train = PreparedSplit.open("data/prepared/train.arrow")
    config = embedding_config(vocabularies, train, params.embed)
    device = pick_device(params.embed.device, "embed.device")
    model = fit_embedding(config, train, vocabularies, normaliser.sigma_nm, params.embed, params.seed, device)
    save_embedding(model, "models/embedding")
    test = PreparedSplit.open("data/prepared/test.arrow")
    metrics = retrieval_metrics(model, test, normaliser.sigma_nm) | exact_metrics(test)
    write_json(
        "reports/embedding.json",
        {
            "steps": params.embed.steps,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "test_wafers": len(test),
        }
        | metrics,
    )


if __name__ == "__main__":
    run_plainly(main)
