"""The encoders: numbers keep their value, words speak for unknown lines, anything may be missing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_split import simulated
from sklearn.linear_model import RidgeCV

from ikddit.dataset.vocabulary import UNKNOWN
from ikddit.embedding.conditions import Conditions, gather_conditions
from ikddit.embedding.encoders import CHANNEL_TOKENS, MapEncoder, UnifiedEmbedding
from ikddit.embedding.fit import (
    PAIRS,
    embedding_config,
    fit_embedding,
    load_embedding,
    retrieval_batches,
    retrieval_metrics,
    save_embedding,
)
from ikddit.errors import ModelError
from ikddit.params import EmbedParams

PARAMS = EmbedParams(dim=32, steps=25, batch=96, learning_rate=3e-3)


@pytest.fixture(scope="module")
def split():
    return simulated(20)[0]


@pytest.fixture(scope="module")
def known():
    return simulated(20)[1]


@pytest.fixture(scope="module")
def model(split, known):
    return fit_embedding(embedding_config(known, split, PARAMS), split, known, 2.0, PARAMS, 0)


@pytest.fixture(scope="module")
def conditions(split):
    return gather_conditions(split, slice(0, 40), 2.0)


def blank(c: Conditions, what: str) -> Conditions:
    """The wafers as they are met when a modality was never received."""
    if what == "ids":
        return replace(c, ids=torch.zeros_like(c.ids))
    if what == "map":
        return replace(c, prev_map=torch.zeros_like(c.prev_map), prev_valid=torch.zeros_like(c.prev_valid))
    return replace(
        c,
        log_features=torch.zeros_like(c.log_features),
        log_missing=torch.ones_like(c.log_missing),
        line_templates=torch.zeros_like(c.line_templates),
        line_values=torch.zeros_like(c.line_values),
        line_words=torch.zeros_like(c.line_words),
    )


def line(known, text: str) -> Conditions:
    """One wafer whose log is this one line, in two places of padding."""
    codes, values, words = known.encode_lines([[text]], 3, 6)
    return Conditions(
        ids=torch.zeros(1, 10, dtype=torch.long),
        log_features=torch.zeros(1, 128),
        log_missing=torch.ones(1, 128),
        line_templates=torch.from_numpy(codes.astype(np.int64)),
        line_values=torch.from_numpy(values),
        line_words=torch.from_numpy(words.astype(np.int64)),
        prev_map=torch.zeros(1, 2, 64, 64),
        prev_valid=torch.zeros(1, 1, 64, 64),
    )


@pytest.mark.parametrize("what", ["ids", "map", "log"])
def test_a_missing_modality_leaves_the_others_as_they_are(model, conditions, what):
    with torch.no_grad():
        full, less = model(conditions), model(blank(conditions, what))
    assert torch.isfinite(less.tokens).all()
    assert torch.allclose(less.pooled.view(-1, 3, 32).norm(dim=-1), torch.ones(len(conditions), 3))
    names = ["map", "log", "id"]
    for name, a, b in zip(names, full.pooled.chunk(3, -1), less.pooled.chunk(3, -1), strict=True):
        changed = not torch.allclose(a, b, atol=1e-5)
        assert changed == (name.startswith(what[:2]))


def test_padding_changes_nothing(model, conditions):
    some = conditions[:6]
    lines = int((some.line_templates > 0).sum(1).max())
    short = replace(
        some,
        line_templates=some.line_templates[:, :lines],
        line_values=some.line_values[:, :lines],
        line_words=some.line_words[:, :lines],
    )
    with torch.no_grad():
        long_tokens, pad = model.logs(some)
        tokens, _ = model.logs(short)
    assert torch.allclose(long_tokens[:, : tokens.shape[1]], tokens, atol=1e-5)
    assert not long_tokens[pad].any()
    assert (pad.sum(1) == 32 - (some.line_templates > 0).sum(1)).all()


def test_hot_spot_positions_can_be_read_off_the_lines_token(model, split, known):
    code = 2 + next(i for i, text in enumerate(known.templates) if "hot spot" in text)
    wafer, place = np.nonzero(split.line_templates == code)
    c = gather_conditions(split, wafer, 2.0)
    with torch.no_grad():
        tokens = model.logs(c)[0][torch.arange(len(wafer)), CHANNEL_TOKENS + torch.from_numpy(place)].numpy()
    xy = split.line_values[wafer, place, :2]
    cut = int(0.7 * len(wafer))  # later lots are held out
    probe = RidgeCV(np.logspace(-4, 2, 13)).fit(tokens[:cut], xy[:cut])
    error = ((probe.predict(tokens[cut:]) - xy[cut:]) ** 2).mean(0)
    assert (1 - error / xy[cut:].var(0)).min() > 0.8


def test_numbers_are_measured_by_their_own_templates_spread(model, known):
    row = 2 + known.templates.index("MAINTENANCE last PM <num> days ago")
    mean, std = known.value_moments(6)
    assert torch.equal(model.logs.value_mean[row], torch.from_numpy(mean[row]))
    assert std[row, 0] > 1
    assert torch.equal(model.logs.value_std[row], torch.from_numpy(std[row]))


def test_an_unknown_line_is_read_by_its_words_and_numbers(model, known):
    token = CHANNEL_TOKENS
    with torch.no_grad():
        spot = model.logs(line(known, "WARN levelling hot spot x=+50.0 y=-40.0 mm dz=+40 nm"))[0][0, token]
        found = [
            model.logs(line(known, text))[0][0, token]
            for text in (
                "WARN levelling hot spot found at x=+50.0 y=-40.0 mm",
                "WARN levelling hot spot found at x=-50.0 y=-40.0 mm",
                "xyzzy plugh +50.0 -40.0 fnord",
            )
        ]
    assert known.encode_lines([["WARN levelling hot spot found at x=1 y=2 mm"]], 1, 6)[0].item() == UNKNOWN
    assert not torch.allclose(found[0], found[1], atol=1e-3)  # the value is in it
    near, _, far = (torch.nn.functional.cosine_similarity(spot, other, dim=0) for other in found)
    assert near > far  # so are the words


@pytest.mark.parametrize("number", ["3e38", "-3e38", "1e-38"])
@pytest.mark.parametrize("template", ["MAINTENANCE last PM {} days ago", "never seen {}"])
def test_absurd_numbers_stay_finite(model, known, number, template):
    with torch.no_grad():
        assert torch.isfinite(model(line(known, template.format(number))).tokens).all()


def test_an_id_never_seen_is_read_as_unknown(model, split, known, conditions):
    ids = {name: ["NEVER"] for name in known.ids}
    assert not known.encode_ids(ids).any()
    with torch.no_grad():
        assert torch.isfinite(model(blank(conditions[:1], "ids")).pooled).all()


def test_each_patch_has_its_own_weights():
    torch.manual_seed(0)
    encoder = MapEncoder(16)
    valid = torch.ones(1, 1, 64, 64)
    corner = torch.zeros(1, 2, 64, 64)
    corner[..., :16, :16] = 1
    with torch.no_grad():
        encoder.position.zero_()
        here = encoder(corner, valid, 1).mean(1)
        there = encoder(corner.flip(-1), valid, 1).mean(1)
    assert not torch.allclose(here, there, atol=1e-3)


def test_same_seed_same_bits_other_seed_other_bits(split, known):
    quick = PARAMS.model_copy(update={"steps": 2})
    config = embedding_config(known, split, quick)
    states = [fit_embedding(config, split, known, 2.0, quick, seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert not torch.equal(states[0]["maps.position"], states[2]["maps.position"])


def test_folder_round_trip(tmp_path, model, conditions):
    save_embedding(model, tmp_path / "e")
    again = load_embedding(tmp_path / "e")
    with torch.no_grad():
        assert torch.equal(again(conditions).pooled, model(conditions).pooled)
    assert again.config == model.config
    (tmp_path / "e/config.json").unlink()
    with pytest.raises(ModelError, match="dvc repro embed"):
        load_embedding(tmp_path / "e")
    save_embedding(model, tmp_path / "e")
    (tmp_path / "e" / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ModelError, match=r"not a usable embedding .*; run `dvc repro embed`"):
        load_embedding(tmp_path / "e")


def test_retrieval_is_measured_on_whole_batches_that_do_not_overlap():
    batches = list(retrieval_batches(600))
    assert [len(b) for b in batches] == [256, 256]
    assert len(np.unique(np.concatenate(batches))) == 512
    assert all((np.diff(b) > 0).all() for b in batches)
    assert [len(b) for b in retrieval_batches(30)] == [30]


def test_retrieval_of_the_trained_embedding_beats_chance(model, split):
    metrics = retrieval_metrics(model, split, 2.0, batch=100)
    assert metrics["retrieval_batch"] == 100
    assert len(metrics) == 1 + 2 * 2 * len(PAIRS)
    assert metrics["retrieval_log_to_id_at_1"] > 0.1  # chance is a few wafers in a hundred
    for name, value in metrics.items():
        if name.endswith("_at_1"):
            assert value <= metrics[name[:-1] + "5"] <= 1


def test_training_pulls_a_wafers_modalities_together(split, known, model):
    torch.manual_seed(0)
    fresh = UnifiedEmbedding(model.config)
    fresh.logs.know(known)
    c = gather_conditions(split, slice(0, 200, 2), 2.0)

    def gap(embedding: UnifiedEmbedding) -> float:
        with torch.no_grad():
            _, logs, ids = embedding(c).pooled.chunk(3, -1)
        similar = logs @ ids.T
        return float(similar.diagonal().mean() - similar.mean())

    assert gap(model) > gap(fresh) + 0.1
