"""Guidance: the formula, its interval, the weak branches, and a Gaussian in closed form."""

import math

import pytest
import torch
from diffusion_fakes import made_model, made_tokens, unit_noise

from ikddit.diffusion.guidance import Guidance
from ikddit.diffusion.plan import SamplingPlan, draw_order
from ikddit.networks.student import ConditionCache

EVERYWHERE = {"sigma_low": 0.0, "sigma_high": 1e9}


@pytest.fixture(scope="module")
def model():
    return made_model()


def sample(model, plan, batch=3):
    cache = model.student.encoder.cache(made_tokens(batch))
    order = draw_order(batch, model.student.encoder.groups, torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.sample_residual(unit_noise(batch), cache, plan, order)


@pytest.mark.parametrize("inference", ["full", "masked"])
@pytest.mark.parametrize("kind", ["cfg", "path_drop"])
def test_weight_one_is_unguided_bit_for_bit(model, kind, inference):
    plain = sample(model, SamplingPlan(7, inference))
    assert torch.equal(sample(model, SamplingPlan(7, inference, guidance=Guidance(1.0, kind))), plain)
    assert not torch.equal(sample(model, SamplingPlan(7, inference, guidance=Guidance(1.5, kind))), plain)


def test_weight_zero_everywhere_is_the_weak_branch_alone(model):
    guided = sample(model, SamplingPlan(6, guidance=Guidance(0.0, "cfg", **EVERYWHERE)))
    with torch.no_grad():
        weak = model.sample_residual(unit_noise(3), model.unconditional(3), SamplingPlan(6))
    torch.testing.assert_close(guided, weak, atol=1e-5, rtol=1e-5)


def test_unconditional_branch_is_the_dropped_condition_of_training(model):
    x, sigma = unit_noise(3), torch.tensor(0.5)
    tokens = made_tokens(3)
    dropped = model.student.encoder.cache(tokens.dropped(torch.ones(3, dtype=torch.bool)))
    with torch.no_grad():
        a = model.denoise(x, sigma, model.unconditional(3))[0]
        b = model.denoise(x, sigma, dropped)[0]
        conditional = model.denoise(x, sigma, model.student.encoder.cache(tokens))[0]
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert (a - conditional).abs().max() > 1e-3


def test_weak_branch_of_path_drop_is_what_path_dropout_trains(model):
    x, sigma = unit_noise(3), torch.tensor(0.5)
    cache = model.student.encoder.cache(made_tokens(3))
    c_skip, c_out, c_in, c_noise = model.precondition.coefficients(sigma.view(1, 1, 1, 1))
    valid = model.usable.expand(3, -1, -1, -1)
    drop = torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        raw, _ = model.student(c_in * x * valid, valid, c_noise.flatten().expand(3), cache, path_drop=drop)
        trained = c_skip * x + c_out * raw
        weak, deep = model.denoise(x, sigma, cache, path_drop=0.0)
        strong, plain_deep = model.denoise(x, sigma, cache)
        guided, _ = model.denoise(x, sigma, cache, path_drop=1.75)
    torch.testing.assert_close(weak, trained, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(guided, weak + 1.75 * (strong - weak), atol=1e-5, rtol=1e-5)
    assert torch.equal(deep, plain_deep)
    assert (weak - strong).abs().max() > 1e-3


def test_weak_branch_of_path_drop_does_not_see_the_deep_encoder(model, monkeypatch):
    x, sigma = unit_noise(1), torch.tensor(0.5)
    cache = model.student.encoder.cache(made_tokens(1))
    with torch.no_grad():
        before = model.denoise(x, sigma, cache, path_drop=0.0)[0]
        deepen = model.student.encoder.deepen
        monkeypatch.setattr(model.student.encoder, "deepen", lambda *a, **k: (deepen(*a, **k)[0] + 100.0, []))
        after = model.denoise(x, sigma, cache, path_drop=0.0)[0]
    torch.testing.assert_close(before, after)


def test_guided_only_inside_the_interval(model, monkeypatch):
    seen = []
    denoise = model.denoise

    def spy(x, sigma, cache, visible=None, deep=None, path_drop=None):
        seen.append((float(sigma), path_drop))
        return denoise(x, sigma, cache, visible, deep, path_drop)

    monkeypatch.setattr(model, "denoise", spy)
    low, high = 0.4 * model.config.sigma_data, 3.2 * model.config.sigma_data
    sample(model, SamplingPlan(12, guidance=Guidance(2.0, "path_drop")), batch=1)
    assert len(seen) == 12
    assert [weight is not None for _, weight in seen] == [low < sigma <= high for sigma, _ in seen]
    assert 0 < sum(weight is not None for _, weight in seen) < 12
    # classifier-free guidance pays for a second evaluation there, and only there
    guided = sum(weight is not None for _, weight in seen)
    seen.clear()
    sample(model, SamplingPlan(12, guidance=Guidance(2.0, "cfg")), batch=1)
    assert len(seen) == 12 + guided


@pytest.mark.parametrize("weight", [0.5, 2.0, 3.0])
def test_guided_gaussian_in_closed_form(model, monkeypatch, weight):
    """Both branches ideal denoisers of N(m, s^2) and N(0, s^2): guided everywhere it is N(w m, s^2)."""
    mean, sd = 0.7, model.config.sigma_data
    cache = model.student.encoder.cache(made_tokens(16))

    def ideal(x, sigma, given: ConditionCache, visible=None, deep=None, path_drop=None):
        target = mean if given is cache else 0.0
        return (sd**2 * x + sigma**2 * target) / (sd**2 + sigma**2), torch.zeros(1)

    monkeypatch.setattr(model, "denoise", ideal)
    plan = SamplingPlan(60, guidance=Guidance(weight, "cfg", **EVERYWHERE))
    out = model.sample_residual(unit_noise(16), cache, plan)
    # the run starts from zero mean at sigma_max, of which the flow leaves s / sqrt(s^2 + sigma_max^2)
    left = sd / math.hypot(sd, model.config.sigma_max)
    assert float(out.mean()) == pytest.approx(weight * mean * (1 - left), abs=0.005)
    assert float(out.std()) == pytest.approx(sd, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, "weight of 0 or more"),
        ({"weight": float("nan")}, "finite"),
        ({"weight": 2.0, "kind": "auto"}, "cfg or path_drop"),
        ({"weight": 2.0, "sigma_low": 2.0, "sigma_high": 1.0}, "sigma_low < sigma_high"),
    ],
)
def test_impossible_guidance_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**arguments)
