"""Masked inference: which tokens the deep encoder sees when, and whose deep features the others use."""

import itertools

import pytest
import torch
from diffusion_fakes import made_model, made_tokens, unit_noise

from ikddit.diffusion.guidance import Guidance
from ikddit.diffusion.plan import SamplingPlan, draw_order, visible_at
from ikddit.networks.student import ConditionCache

TOKENS = 64


@pytest.fixture(scope="module")
def model():
    return made_model()


def order_of(batch, seed=3):
    return draw_order(batch, TOKENS, torch.Generator().manual_seed(seed))


def run(model, plan, batch=2, cache=None):
    cache = cache or model.student.encoder.cache(made_tokens(batch))
    with torch.no_grad():
        return model.sample_residual(unit_noise(batch), cache, plan, order_of(batch))


@pytest.fixture
def spied(model, monkeypatch):
    """Per evaluation: cache, visible positions, deep features given and returned."""
    calls = []
    denoise = model.denoise

    def spy(x, sigma, cache, visible=None, deep=None, path_drop=None):
        out, full = denoise(x, sigma, cache, visible, deep, path_drop)
        calls.append({"sigma": float(sigma), "cache": cache, "visible": visible, "given": deep, "full": full})
        return out, full

    monkeypatch.setattr(model, "denoise", spy)
    return calls


def test_ends_are_full_and_halves_between_them_alternate(model, spied):
    run(model, SamplingPlan(9, "masked"))
    visible = [call["visible"] for call in spied]
    assert [v is None for v in visible] == [True] * 2 + [False] * 5 + [True] * 2
    for a, b in itertools.pairwise(visible[2:7]):
        assert torch.equal(torch.cat([a, b], 1).sort(1).values, torch.arange(TOKENS).expand(2, -1))
    assert torch.equal(visible[2], visible[4])


def test_hidden_token_reuses_its_own_deep_feature_of_the_evaluation_before(model, spied):
    run(model, SamplingPlan(9, "masked"))
    for before, call in itertools.pairwise(spied):
        if call["visible"] is None:
            continue
        hidden = torch.ones(2, TOKENS, dtype=torch.bool).scatter_(1, call["visible"], False)
        assert torch.equal(call["full"][hidden], before["full"][hidden])
        assert not torch.equal(call["full"][~hidden], before["full"][~hidden])
        # the feature reused was made in the evaluation before, not carried over once more
        if before["visible"] is not None:
            made = torch.zeros(2, TOKENS, dtype=torch.bool).scatter_(1, before["visible"], True)
            assert made[hidden].all()


@pytest.mark.parametrize(("ratio", "oldest"), [(0.25, 1), (0.5, 1), (0.7, 3)])
def test_age_of_reused_features_is_bounded(ratio, oldest):
    count, evaluations = round(TOKENS * (1 - ratio)), 20
    order, age = order_of(3), torch.zeros(3, TOKENS)
    worst = 0
    for number in range(evaluations):
        visible = visible_at(order, number, evaluations, count)
        age = age + 1
        if visible is None:
            age.zero_()
        else:
            age.scatter_(1, visible, 0.0)
        worst = max(worst, int(age.max()))
    assert worst == oldest


def test_heun_counts_evaluations_not_steps(model, spied):
    run(model, SamplingPlan(5, "masked", sampler="heun"))
    assert [c["visible"] is None for c in spied] == [True] * 2 + [False] * 5 + [True] * 2


def test_condition_is_encoded_once_per_run_and_not_once_per_step(model, monkeypatch):
    calls = []
    for block in model.student.encoder.deep_blocks:
        attention = block.cross.attention
        key_value = attention.key_value
        monkeypatch.setattr(attention, "key_value", lambda c, f=key_value: calls.append(1) or f(c))
    run(model, SamplingPlan(9, "masked"))
    assert len(calls) == len(model.student.encoder.deep_blocks)


def test_masks_are_those_of_training_spread_over_every_two_by_two_group():
    order = draw_order(4, 64, torch.Generator().manual_seed(3))
    assert torch.equal(order.sort(1).values, torch.arange(64).expand(4, -1))
    for half in (order[:, :32], order[:, 32:]):
        seen = torch.zeros(4, 64).scatter_(1, half, 1.0).view(4, 8, 8)
        groups = seen.unfold(1, 2, 2).unfold(2, 2, 2).sum((-1, -2))
        assert torch.equal(groups, torch.full_like(groups, 2.0))
    assert not torch.equal(order[0], order[1])


def test_groups_cut_by_the_edge_keep_whole_groups_balanced():
    groups = torch.tensor([0] * 4 + [1] * 3 + [2] * 4 + [3] * 3)  # two whole groups, two cut ones
    order = draw_order(50, 14, torch.Generator().manual_seed(3), groups)
    assert torch.equal(order.sort(1).values, torch.arange(14).expand(50, -1))
    for half in (order[:, :7], order[:, 7:]):
        counts = torch.nn.functional.one_hot(groups[half], 4).sum(1)
        assert (counts[:, [0, 2]] == 2).all()
        assert ((counts[:, [1, 3]] >= 1) & (counts[:, [1, 3]] <= 2)).all()


def test_mask_ratio_zero_is_full_inference_bit_for_bit(model):
    full = run(model, SamplingPlan(6))
    assert torch.equal(run(model, SamplingPlan(6, "masked", mask_ratio=0.0)), full)
    assert not torch.equal(run(model, SamplingPlan(6, "masked")), full)


def test_masked_inference_without_an_order_is_refused(model):
    cache = model.student.encoder.cache(made_tokens(1))
    with pytest.raises(ValueError, match="order"):
        model.sample_residual(unit_noise(1), cache, SamplingPlan(4, "masked"))


def test_weak_branch_never_reuses_features_it_did_not_make_in_the_evaluation_before(model, spied):
    plan = SamplingPlan(12, "masked", guidance=Guidance(2.0, sigma_low=0.5, sigma_high=5.0))
    cache = model.student.encoder.cache(made_tokens(2))
    run(model, plan, cache=cache)
    weak = [c for c in spied if c["cache"] is not cache]
    # it joins in the middle of the run: full once, then masked with its own features
    assert weak[0]["visible"] is None
    assert weak[1]["visible"] is not None
    for before, call in itertools.pairwise(weak):
        assert call["given"] is before["full"]


@pytest.mark.parametrize("masked", [False, True])
def test_samples_of_a_wafer_share_its_keys_as_if_each_had_its_own(model, masked):
    wafers, n = 3, 4
    one = model.student.encoder.cache(made_tokens(wafers))
    shared = one.repeat_interleave(n)
    assert shared.key_values[0][0].shape[0] == wafers  # nothing was copied
    own = ConditionCache(
        shared.pooled,
        [(k.repeat_interleave(n, 0), v.repeat_interleave(n, 0)) for k, v in one.key_values],
        one.attend.repeat_interleave(n, 0),
    )
    x, sigma, deep = unit_noise(wafers * n), torch.tensor(0.7), torch.randn(wafers * n, TOKENS, 128)
    visible = order_of(wafers * n)[:, :32].sort(1).values if masked else None
    with torch.no_grad():
        a = model.denoise(x, sigma, shared, visible, deep)[0]
        b = model.denoise(x, sigma, own, visible, deep)[0]
        other = model.denoise(x, sigma, ConditionCache(own.pooled, own.key_values[::-1], own.attend))[0]
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert (a - other).abs().max() > 1e-3  # the keys matter
