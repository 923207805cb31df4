"""From prepared records to a fitted model: what its summary says, and what is chosen where there is no val."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.prepare import prepare
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.embedding.encoders import UnifiedEmbedding
from ikddit.embedding.fit import embedding_config, save_embedding
from ikddit.params import PrepareParams, parse_params
from ikddit.training.fit import fit, measured_sigma
from ikddit.training.mean import RIDGE_ALPHAS

WAFERS = 120


@pytest.fixture
def prepared(tmp_path: Path, make_records) -> Path:
    """Records whose maps nothing predicts, without val; of a log line one number fewer is kept than it names a place
    with."""
    records = tmp_path / "records"
    records.mkdir()
    pq.write_table(make_records(WAFERS), records / "part-0.parquet")
    settings = PrepareParams(val_share=0.0, test_share=0.2, unseen_combinations=0, values_per_line=2)
    prepare(records, tmp_path / "prepared", settings, seed=0)
    return tmp_path / "prepared"


def test_without_val_unseen_lots_choose_and_the_summary_names_no_error_of_val(prepared: Path) -> None:
    params = parse_params(
        {
            "embed": {"dim": 16},
            "train": {
                "steps": 1,
                "batch": 4,
                "precision": "fp32",
                "mean": {"components": 10, "interactions": 15},
            },
        }
    )
    train = PreparedSplit.open(prepared / "train.arrow")
    config = embedding_config(Vocabularies.load(prepared / "vocabularies.json"), train, params.embed)
    save_embedding(UnifiedEmbedding(config), prepared / "embedding")
    fitted = fit(params, prepared, prepared / "embedding", None)
    assert not [name for name in fitted.report if "val" in name]
    assert fitted.report["mean_ridge_alpha"] > min(RIDGE_ALPHAS)  # which fits the training maps best
    mean = fitted.trainer.model.mean
    assert mean.config.spots == ()
    assert fitted.report["mean_parameters"] == sum(value.numel() for value in mean.state_dict().values()) > 0


@pytest.mark.parametrize(("norm", "white"), [(40.0, 0.5), (2.0, 0.5)])
def test_noise_levels_follow_from_a_mode_of_known_norm(norm: float, white: float) -> None:
    """Residuals a u + white noise: the data's power is theirs, and noise hides a mode from twice its norm on."""
    generator = torch.Generator().manual_seed(0)
    mode = torch.randn(2, 64, 64, generator=generator)
    mode /= mode.norm()
    size = torch.randn(1000, 1, 1, 1, generator=generator)
    size *= norm / size.square().mean().sqrt()
    residual = size * mode + white * torch.randn(1000, 2, 64, 64, generator=generator)
    sigma, high = measured_sigma(residual, torch.ones(1000, 1, 64, 64))
    assert sigma == pytest.approx((norm**2 / 8192 + white**2) ** 0.5, rel=0.01)
    assert high == pytest.approx(max(2 * norm, 10 * sigma), rel=0.02)
