"""The public API on a tiny untrained model: shapes, independence of batches, bad requests by name."""

import numpy as np
import pandas as pd
import pytest
import torch

from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.diffusion.model import ModelConfig, OverlayModel
from ikddit.embedding.encoders import EmbeddingConfig
from ikddit.errors import InputError, ModelError
from ikddit.generator import Generator
from ikddit.mpom.schema import ID_FIELDS
from ikddit.networks.mean import MeanConfig

LOGS = ["dose", "heat"]


@pytest.fixture(scope="module")
def generator() -> Generator:
    vocabularies = Vocabularies({name: ["A", "B"] for name in ID_FIELDS}, ["dose <num>"])
    sizes = tuple(vocabularies.id_sizes)
    embedding = EmbeddingConfig(16, sizes, len(LOGS), vocabularies.template_size, 2)
    config = ModelConfig(
        model="T/8",
        embedding=embedding,
        mean=MeanConfig("none", sizes, len(LOGS), vocabularies.template_size, 5, 5, 0, (), 4.6875),
        sigma_nm=2.0,
        sigma_data=0.4,
        modes=0,
        sigma_min=0.02,
        sigma_max=20.0,
        mask_ratio=0.5,
        max_lines=3,
        precision="fp32",
    )
    torch.manual_seed(0)
    zeros, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
    normaliser = Normaliser(LOGS, zeros, ones, 2.0, np.zeros((2, 64, 64), np.float32))
    return Generator(OverlayModel(config).eval(), normaliser, vocabularies)


def made_frame(codes: list[str]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "barcode": codes,
            "scanner_id": ["A"] * len(codes),
            "log_lines": [["dose 30.1"]] * len(codes),
            "log_features": [[1.0, None]] * len(codes),
            "prev_map": [rng.normal(size=8192).tolist() for _ in codes],
        }
    )


def test_forecast_has_a_row_per_wafer_and_ordered_intervals(generator):
    out = generator.predict_frame(made_frame(["w1", "w2", "w3"]), n=4, steps=3)
    assert list(out["barcode"]) == ["w1", "w2", "w3"]
    assert all(len(row) == 8192 for row in out["mean"])
    assert (out["m3s_x_low_nm"] <= out["m3s_x_nm"]).all()
    assert (out["m3s_x_nm"] <= out["m3s_x_high_nm"]).all()
    assert out["out_of_spec"].between(0, 1).all()


def test_samples_of_a_wafer_do_not_depend_on_its_neighbours(generator):
    frame = made_frame(["w1", "w2"])
    together = generator.sample(generator._table(frame), n=2, steps=3, seed=5)
    alone = generator.sample(generator._table(frame.iloc[1:]), n=2, steps=3, seed=5)
    np.testing.assert_allclose(together[1:], alone, atol=1e-4)
    other = generator.sample(generator._table(frame), n=2, steps=3, seed=6)
    assert np.abs(other - together).max() > 0.1


def test_empty_list_is_a_missing_one(generator):
    given = made_frame(["w1", "w2"])
    empty = given.assign(prev_map=[[], []], log_features=[[], []], log_lines=[[], None])
    absent = given[["barcode", "scanner_id"]]
    pd.testing.assert_frame_equal(
        generator.predict_frame(empty, n=2, steps=2), generator.predict_frame(absent, n=2, steps=2)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prev_map": [[1.0, 2.0]]}, "prev_map: 2 values, expected 8192"),
        ({"log_features": [["a", "b"]]}, "log_features: not a list of numbers"),
        ({"colour": ["red"]}, "colour: unknown column"),
    ],
)
def test_bad_request_names_the_column(generator, change, message):
    frame = made_frame(["w1"]).assign(**change)
    with pytest.raises(InputError, match=message):
        generator.predict_frame(frame, n=2, steps=2)


def test_request_without_a_previous_map_is_answered(generator):
    out = generator.predict_frame(pd.DataFrame({"barcode": ["w"]}), n=2, steps=2)
    assert np.isfinite(out["mean"][0]).all()


def test_missing_model_folder_says_what_to_do(tmp_path):
    with pytest.raises(ModelError, match="dvc repro train"):
        Generator.load(tmp_path)
