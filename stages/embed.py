"""Stage `embed`: prepared data -> models/embedding/, reports/embedding.json."""

import torch

from ikddit.atomic import write_json
from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.embedding.encoders import EmbeddingConfig
from ikddit.embedding.fit import fit_embedding, retrieval_metrics, save_embedding
from ikddit.params import load_params


def main() -> None:
    """Pretrain the unified contrastive embedding on train, measure retrieval on val and test."""
    params = load_params()
    normaliser = Normaliser.load("data/prepared/normaliser.json")
    vocabularies = Vocabularies.load("data/prepared/vocabularies.json")
    train = PreparedSplit.open("data/prepared/train.arrow")
    config = EmbeddingConfig(
        dim=params.embed.dim,
        id_sizes=tuple(vocabularies.id_sizes),
        log_channels=train.log_features.shape[1],
        templates=vocabularies.template_size,
        values_per_line=train.line_values.shape[2],
    )
    model = fit_embedding(config, train, normaliser.sigma_nm, params.embed, params.seed)
    save_embedding(model, "models/embedding")
    test = PreparedSplit.open("data/prepared/test.arrow")
    metrics = retrieval_metrics(model, test, normaliser.sigma_nm)
    write_json(
        "reports/embedding.json",
        {"steps": params.embed.steps, "threads": torch.get_num_threads(), "test_wafers": len(test)} | metrics,
    )


if __name__ == "__main__":
    run_plainly(main)
