"""Settings: whatever does not fit is refused by its name before a stage runs."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikddit.errors import ParamsError
from ikddit.params import Params, load_params, parse_params

CHECKOUT = Path(__file__).parents[1]


def test_params_yaml_holds_the_documented_defaults():
    assert load_params(CHECKOUT / "params.yaml") == Params()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"mask_ration": 0.7}, r"mask_ration: unknown key; did you mean `mask_ratio`"),
        ({"train": {"step": 5}}, r"train\.step: unknown key; did you mean `steps`"),
        ({"simulate": {"shift": {"scaner": "LITH01"}}}, r"simulate\.shift\.scaner: .*did you mean `scanner`"),
        ({"mask_ratio": 1.0}, r"mask_ratio: .*less than 1, found 1\.0"),
        ({"mask_ratio": -0.1}, r"mask_ratio: "),
        ({"lambda1": -1}, r"lambda1: .*greater than or equal to 0"),
        ({"lambda1": True}, r"lambda1: .*number, found True"),
        ({"lambda1": 10**400}, r"lambda1: .*number, found 1000"),
        ({"baselines": {"ridge_alphas": [1, 10**400]}}, r"baselines\.ridge_alphas\.1: "),
        ({"model": "T/9"}, r"model: "),
        ({"seed": "zero"}, r"seed: .*integer"),
        ({"seed": True}, r"seed: "),
        ({"train": {"steps": 2.5}}, r"train\.steps: "),
        ({"train": {"discriminator": "gan"}}, r"train\.discriminator: "),
        ({"ingest": {"marks": {"unit": "mm"}}}, r"ingest\.marks\.unit: "),
        ({"validate": {"max_abs_nm": 0}}, r"validate\.max_abs_nm: "),
        ({"fid": {"dims": [64, 100]}}, r"fid\.dims\.1: "),
        ({"fid": {"dims": []}}, r"fid\.dims: "),
        ({"control": {"maintenance": "PM ("}}, r"control\.maintenance: .*not a regular expression"),
    ],
)
def test_what_does_not_fit_is_named(values, named):
    with pytest.raises(ParamsError, match=named):
        parse_params(values)


def test_every_problem_is_named_at_once():
    with pytest.raises(ParamsError) as error:
        parse_params({"mask_ratio": 2, "lambda2": -1, "sed": 0})
    assert all(name in str(error.value) for name in ("mask_ratio", "lambda2", "sed"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("seed: [", "YAML"),
        ("- 1", "mapping"),
        ("", "mapping"),
        ("seed: !!bool 3", "YAML"),
        ("seed: !!int ''", "YAML"),
        ("seed: 2026-99-99", "YAML"),
        ("seed: " + "9" * 5000, "YAML"),
        ("seed: " + "[" * 3000, "YAML"),
        ("seed: " + "[" * 100_000 + "]" * 100_000, "at most"),
    ],
)
def test_what_is_not_a_mapping_is_said_to_be_none(tmp_path, text, named):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=named):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match="not found"):
        load_params(tmp_path / "other.yaml")


def test_aliases_that_stand_for_billions_of_entries_are_not_written_out(tmp_path):
    names = [
        "lambda1",
        "lambda2",
        "seed",
        "model",
        "mask_ratio",
        "data",
        "fid",
        "train",
        "embed",
        "timing",
        "control",
    ]
    lines = [f"{names[0]}: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{name}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i, name in enumerate(names[1:], 1)]
    (tmp_path / "params.yaml").write_text("\n".join(lines))
    with pytest.raises(ParamsError, match="lambda1") as error:
        load_params(tmp_path / "params.yaml")
    assert len(str(error.value)) < 20_000


def test_a_params_yaml_that_is_a_folder_is_named(tmp_path):
    with pytest.raises(ParamsError, match="not readable"):
        load_params(tmp_path)


def test_small_numbers_in_yaml_are_numbers(tmp_path):
    (tmp_path / "params.yaml").write_text("train: {learning_rate: 1e-4}\nlambda1: 1\n")
    params = load_params(tmp_path / "params.yaml")
    assert (params.train.learning_rate, params.lambda1) == (1e-4, 1.0)


@given(ratio=st.floats(allow_nan=True, allow_infinity=True))
def test_a_mask_ratio_is_taken_if_and_only_if_it_lies_in_its_range(ratio):
    if 0 <= ratio < 1:
        assert parse_params({"mask_ratio": ratio}).mask_ratio == ratio
    else:
        with pytest.raises(ParamsError, match="mask_ratio"):
            parse_params({"mask_ratio": ratio})
