"""What a missing input would have told is measured on training wafers and drawn for wafers that lack it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

from evaluation_fakes import GRID, small_fab

from ikddit.embedding.conditions import gather_conditions, missing_inputs, withhold
from ikddit.mpom.schema import ID_FIELDS
from ikddit.params import MeanParams
from ikddit.training.mean import fit_mean

SIZES = (6,) * len(ID_FIELDS)
PREVIOUS, LOGS = 0, 1
SCANNER, CHUCK, CHAMBER = (2 + ID_FIELDS.index(name) for name in ("scanner_id", "chuck_id", "chamber_id"))
HELD = PREVIOUS, LOGS, SCANNER, CHUCK, CHAMBER


@pytest.fixture(scope="module")
def fitted():
    """The conditional mean of a fab each of whose effects is 1 nm RMS (0.8 nm the previous map's), and its wafers."""
    train = small_fab(600, seed=0)
    params = MeanParams(components=12, interactions=20)
    fit = fit_mean(train, small_fab(200, seed=1), ["", "?", "a", "b"], SIZES, 1.0, params, 0)
    return fit.mean, gather_conditions(train, slice(None), 1.0), train


def test_each_input_is_seen_to_be_missing_alone(fitted):
    _, conditions, _ = fitted
    before = missing_inputs(conditions)
    for number in HELD:
        after = missing_inputs(withhold(conditions, number))
        assert not before[:, number].any()
        assert after[:, number].all()
        others = [i for i in range(after.shape[1]) if i != number]
        assert torch.equal(after[:, others], before[:, others])


def drawn(mean, conditions, samples=10):
    shape = len(conditions), samples, *mean.lost.shape[:2]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return mean.draw_lost(conditions, noise)


def test_a_wafer_that_lacks_nothing_is_left_as_it_is(fitted):
    mean, conditions, _ = fitted
    ids = conditions.ids.clamp(min=1)  # the fab has three ids of ten
    assert not drawn(mean, type(conditions)(**{**vars(conditions), "ids": ids})).any()


@pytest.mark.parametrize("number", HELD)
def test_the_draws_are_as_large_as_the_error_that_the_gap_adds(fitted, number):
    mean, conditions, fab = fitted
    less = withhold(conditions, number)
    valid = fab.valid[:, None].astype(bool) & np.ones((1, 2, 1, 1), bool)

    def power(maps):
        return float((maps.numpy()[np.broadcast_to(valid, maps.shape)] ** 2).mean())

    truth = torch.from_numpy(fab.map.astype(np.float32))
    with torch.inference_mode():
        added = power(mean(less) - truth) - power(mean(conditions) - truth)
        extra = drawn(mean, less)
    assert added > 0.5
    spread = np.mean([power(extra[:, i]) for i in range(extra.shape[1])])
    assert spread == pytest.approx(added, rel=0.2)


def test_the_draws_lie_where_the_gap_s_error_lies(fitted):
    """Without the previous map the error is 0.8 x one pattern: so are the draws, sign and size apart."""
    mean, conditions, fab = fitted
    pattern = torch.from_numpy((fab.prev_map * GRID.usable).astype(np.float32)).flatten(1)
    direction = torch.linalg.svd(pattern, full_matrices=False).Vh[0]
    extra = drawn(mean, withhold(conditions, PREVIOUS), 4).flatten(0, 1).flatten(1)
    share = (extra @ direction).square().sum() / extra.square().sum()
    assert share > 0.9
