"""The public API on a tiny untrained model: shapes, independence of batches, bad requests by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ikddit.diffusion.model import OverlayModel
from ikddit.errors import InputError, ModelError
from ikddit.evaluation.specification import call_of_samples
from ikddit.forecast import ForecastFiles, Written, forecast_figure, forecast_of_table, forecast_table
from ikddit.generator import Generator
from ikddit.mpom.schema import ID_FIELDS
from ikddit.overlay import kpi
from made_generator import made_generator, write_generator


@pytest.fixture(scope="module")
def generator() -> Generator:
    return made_generator()


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


def test_forecast_names_the_inputs_that_a_wafer_lacks(generator):
    frame = made_frame(["w1", "w2", "w3"])
    frame.loc[1, "scanner_id"] = "never seen"
    frame.at[2, "log_lines"], frame.at[2, "log_features"] = [], [None, None]
    frame.at[2, "prev_map"] = [None] * 8192
    forecast = generator.predict(generator._table(frame), n=2, steps=2)
    lacking = [set(text.split(", ")) for text in forecast.missing]
    assert lacking[0] == {name for name in ID_FIELDS if name != "scanner_id"}
    assert lacking[1] == lacking[0] | {"scanner_id"}
    assert lacking[2] == lacking[0] | {"prev_map", "logs"}
    assert forecast_of_table(forecast_table(forecast)).missing == forecast.missing
    figure = forecast_figure(forecast, 2, generator.usable)
    title = " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
    assert f"forecast without {forecast.missing[2]}" in title


def test_out_of_spec_is_the_probability_that_is_scored(generator):
    table = generator._table(made_frame(["w1", "w2", "w3"]))
    maps = generator.sample(table, n=4, steps=3)
    m3s = kpi.samples_m3s_nm(maps, np.broadcast_to(generator.usable, (3, 64, 64)))
    limit = float(np.median(m3s.max(-1)))
    served = generator.predict(table, n=4, steps=3, limit_nm=limit).out_of_spec
    np.testing.assert_allclose(served, call_of_samples(m3s, limit).score, rtol=1e-6)
    assert len(set(served)) == 3


@pytest.mark.parametrize("limit", [0.0, -8.0, float("nan")])
def test_a_limit_that_no_wafer_can_keep_is_refused(generator, limit):
    with pytest.raises(InputError, match="limit_nm"):
        generator.predict(generator._table(made_frame(["w1"])), n=2, steps=2, limit_nm=limit)


@pytest.mark.parametrize("ask", ["sample", "predict"])
def test_a_request_without_wafers_is_refused(generator, ask):
    with pytest.raises(InputError, match="no wafers"):
        getattr(generator, ask)(generator._table(made_frame([])), n=2, steps=2)


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


def guided(generator: Generator, **dropout: float) -> Generator:
    """The same weights in a model that says how it was trained."""
    model = OverlayModel(replace(generator.model.config, **dropout)).eval()
    model.load_state_dict(generator.model.state_dict())
    for parameter in model.student.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return Generator(model, generator.normaliser, generator.vocabularies)


@pytest.mark.parametrize("kind", ["cfg", "path_drop"])
def test_guidance_one_gives_the_unguided_maps_bit_for_bit(generator, kind):
    trained = guided(generator, condition_dropout=0.1, path_dropout=0.1)
    table = trained._table(made_frame(["w1", "w2"]))
    plain = trained.sample(table, n=2, steps=5)
    assert np.array_equal(trained.sample(table, n=2, steps=5, guidance=1.0, guidance_kind=kind), plain)
    assert np.abs(trained.sample(table, n=2, steps=5, guidance=3.0, guidance_kind=kind) - plain).max() > 1e-3


@pytest.mark.parametrize("kind", ["condition", "path"])
def test_guidance_the_model_was_not_trained_for_is_refused(generator, kind):
    names = {"condition": "cfg", "path": "path_drop"}
    with pytest.raises(InputError, match=f"train.{kind}_dropout"):
        generator.sample(
            generator._table(made_frame(["w1"])), n=1, steps=2, guidance=2.0, guidance_kind=names[kind]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": -2.0}, "weight of 0 or more"),
        ({"guidance": 2.0, "guidance_kind": "auto"}, "cfg or path_drop"),
        ({"guidance": 2.0, "sigma_low": 5.0}, "sigma_low < sigma_high"),
        ({"guidance_kind": "auto"}, "cfg or path_drop"),
        ({"sigma_low": 5.0}, "sigma_low < sigma_high"),
        ({"inference": "half"}, "use full or masked"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"sampler": "euler"}, "trig, dpm, heun or ddpm"),
        ({"sampler": "ddpm", "steps": 1001}, "at most 1000"),
    ],
)
def test_bad_sampling_option_is_refused_by_name(generator, options, message):
    with pytest.raises(InputError, match=message):
        generator.sample(generator._table(made_frame(["w1"])), **({"n": 1, "steps": 2} | options))


@pytest.mark.parametrize("sampler", ["dpm", "heun", "ddpm"])
def test_samples_of_other_samplers_do_not_depend_on_neighbours_either(generator, sampler):
    frame = made_frame(["w1", "w2"])
    together = generator.sample(generator._table(frame), n=2, steps=4, sampler=sampler)
    alone = generator.sample(generator._table(frame.iloc[1:]), n=2, steps=4, sampler=sampler)
    np.testing.assert_allclose(together[1:], alone, atol=1e-4)


def test_forecast_point_is_not_guided(generator):
    trained = guided(generator, condition_dropout=0.1)
    frame = made_frame(["w1"])
    plain = trained.predict_frame(frame, n=2, steps=3)
    strong = trained.predict_frame(frame, n=2, steps=3, guidance=4.0, sigma_low=0.0, sigma_high=1e6)
    assert strong["mean"][0] == pytest.approx(plain["mean"][0])
    assert np.abs(np.subtract(strong["sigma"][0], plain["sigma"][0])).max() > 1e-3


def test_point_is_the_mean_and_the_denoisers_even_part_at_the_highest_noise(generator, monkeypatch):
    """What the denoiser keeps of the noise cancels between antithetic pairs; what it says of the condition stays.

    Of a mean m Bayes' answer there is sigma^2 / (v + sigma^2) m, v the variance of the prior.
    """
    monkeypatch.setattr(generator.model.mean, "forward", lambda c: torch.full((len(c), 2, 64, 64), 3.0))

    def denoise(x, sigma, cache):
        assert float(sigma) == 20.0
        return 0.25 * 400 / (generator.model.config.sigma_data**2 + 400) + 0.2 * x, None

    monkeypatch.setattr(generator.model, "denoise", denoise)
    point = generator.point(generator._table(made_frame(["w1", "w2"])))
    np.testing.assert_allclose(point[..., generator.usable], 2.0 * (3.0 + 0.25), rtol=1e-6)


def test_generate_command_hands_the_sampling_options_over(monkeypatch):
    from typer.testing import CliRunner

    from ikddit.cli import app

    asked = {}

    def spy(generator, *arguments, **options):
        asked.update(options, arguments=arguments)
        return Written(wafers=3, samples=12, plots=2, plots_skipped=1)

    monkeypatch.setattr("ikddit.batch.write_forecast", spy)
    monkeypatch.setattr(Generator, "load", classmethod(lambda cls, path, device: cls))
    command = ["generate", "records", "--n", "4", "--guidance", "1.5", "--guidance-kind", "path_drop"]
    command += ["--samples", "s.parquet", "--plots", "pictures", "--plot-wafers", "2", "--plot-scale-nm", "4"]
    result = CliRunner().invoke(app, [*command, "--inference", "masked", "--sampler", "heun"])
    assert result.exit_code == 0, result.output
    files = ForecastFiles(Path("forecast.parquet"), Path("s.parquet"), Path("pictures"), 2, 4.0)
    assert asked.pop("arguments") == ("records", files, 4, 20, 0, 8.0)
    assert result.output.splitlines() == [
        "3 wafers -> forecast.parquet",
        "12 sample maps -> s.parquet",
        "2 plots -> pictures/",
        "1 wafers without a plot: --plot-wafers 2",
    ]
    assert asked == {
        "guidance": 1.5,
        "guidance_kind": "path_drop",
        "inference": "masked",
        "sampler": "heun",
    }


def test_the_checkouts_registry_is_found_from_a_folder_of_it(tmp_path, monkeypatch):
    """A notebook works in its own folder."""
    import mlflow

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(store, store)
    client.create_registered_model("ikddit")
    write_generator(tmp_path / "model")
    client.create_model_version("ikddit", (tmp_path / "model").as_uri())
    (tmp_path / ".git").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)
    try:
        assert len(Generator.load("models:/ikddit/1").fingerprint) == 64
        assert list((tmp_path / "notebooks").iterdir()) == []
    finally:
        mlflow.set_tracking_uri(None)
