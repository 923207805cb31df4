"""Preconditioning and samplers against the closed forms of Gaussian data."""

import numpy as np
import pytest
import torch

from ikddit.diffusion.edm import Preconditioning, masked_mean
from ikddit.diffusion.sampler import sample_trig
from ikddit.errors import TrainingError

MEAN, SD = 0.7, 0.5


def ideal(x, sigma, _number):
    """E[y | x] for y ~ N(MEAN, SD^2), x = y + sigma n."""
    return (SD**2 * x + sigma**2 * MEAN) / (SD**2 + sigma**2)


def test_preconditioned_input_and_target_have_unit_variance():
    g = torch.Generator().manual_seed(2)
    p = Preconditioning(0.5)
    y, n = 0.5 * torch.randn(200_000, generator=g), torch.randn(200_000, generator=g)
    for sigma in (0.05, 0.5, 5.0):
        c_skip, c_out, c_in, _ = p.coefficients(torch.tensor(sigma))
        x = y + sigma * n
        assert abs(float((c_in * x).var()) - 1) < 0.02
        assert abs(float(((y - c_skip * x) / c_out).var()) - 1) < 0.02


def test_masked_mean_ignores_invalid_pixels():
    values, valid = torch.ones(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
    valid[..., :2, :] = 1
    values[..., 2:, :] = 1e9
    assert float(masked_mean(values, valid)) == 1.0


def gaussian_data(n: int) -> tuple[torch.Tensor, np.ndarray]:
    """Residuals of three wafer-wide modes (standard deviations 20, 6 and 2) on white noise of 0.4; and the modes."""
    g = torch.Generator().manual_seed(3)
    modes = torch.linalg.qr(torch.randn(8192, 3, generator=g)).Q.T
    scores = torch.randn(n, 3, generator=g) * torch.tensor([20.0, 6.0, 2.0])
    white = 0.4 * torch.randn(n, 8192, generator=g)
    return (white + scores @ modes).view(n, 2, 64, 64), modes.numpy()


def measured(modes: int, n: int = 600) -> tuple[Preconditioning, torch.Tensor]:
    residual, _ = gaussian_data(n)
    p = Preconditioning(float(residual.std()), modes)
    p.measure(residual, torch.ones(n, 1, 64, 64))
    return p, residual


def test_measured_modes_and_variances_are_those_of_the_data():
    p, _ = measured(3)
    _, truth = gaussian_data(1)
    overlap = np.square(p.modes.numpy() @ truth.T).max(1)
    # what principal components can know of a spiked covariance (Paul 2007), gamma = dimensions / wafers
    gamma, spike = 8192 / 600, (np.array([20.0, 6.0, 2.0]) / 0.4) ** 2
    np.testing.assert_allclose(overlap, (1 - gamma / spike**2) / (1 + gamma / spike), atol=0.06)
    np.testing.assert_allclose(p.mode_variance, 0.16 * (1 + spike) * (1 + gamma / spike), rtol=0.12)
    assert abs(float(p.rest_variance.sqrt()) - 0.4) < 0.01


@pytest.mark.parametrize("sigma", [0.1, 3.0, 50.0])
def test_linear_estimate_is_the_closed_form_posterior_mean(sigma):
    """Against the dense formula Sigma (Sigma + sigma^2 I)^-1 x, written with numpy."""
    p, residual = measured(3)
    u, v, rest = p.modes.double().numpy(), p.mode_variance.double().numpy(), float(p.rest_variance)
    x = residual[:4] + sigma * torch.randn(4, 2, 64, 64, generator=torch.Generator().manual_seed(4))
    flat = x.flatten(1).double().numpy()
    scores = flat @ u.T
    dense = (scores * v / (v + sigma**2)) @ u + rest / (rest + sigma**2) * (flat - scores @ u)
    got = p.linear_estimate(x, torch.full((4,), sigma)).flatten(1).numpy()
    np.testing.assert_allclose(got, dense, atol=2e-4)


def test_without_modes_it_is_edm():
    p = Preconditioning(0.5)
    g = torch.Generator().manual_seed(5)
    x, raw = torch.randn(2, 2, 64, 64, generator=g), torch.randn(2, 2, 64, 64, generator=g)
    sigma, valid = torch.tensor([0.2, 3.0]), torch.ones(2, 1, 64, 64)
    read, c_noise, linear = p.inputs(x, sigma)
    s = sigma.view(-1, 1, 1, 1)
    torch.testing.assert_close(read, x / (s**2 + 0.25).sqrt())
    torch.testing.assert_close(c_noise, sigma.log() / 4)
    edm = 0.25 / (s**2 + 0.25) * x + s * 0.5 / (s**2 + 0.25).sqrt() * raw
    torch.testing.assert_close(p.denoised(linear, sigma, raw), edm)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    torch.testing.assert_close(p.loss(raw, sigma, valid), weight * raw.square().mean((1, 2, 3)))


@pytest.mark.parametrize("sigma", [0.1, 3.0, 50.0])
def test_network_target_has_unit_variance_and_the_loss_of_an_idle_network_is_one(sigma):
    p, residual = measured(3)
    level = torch.full((len(residual),), sigma)
    x = residual + sigma * torch.randn(residual.shape, generator=torch.Generator().manual_seed(6))
    _, _, linear = p.inputs(x, level)
    loss = p.loss(
        p.denoised(linear, level, torch.zeros_like(x)) - residual, level, torch.ones(len(x), 1, 64, 64)
    )
    assert abs(float(loss.mean()) - 1) < 0.05


def idle(p: Preconditioning):
    """The denoiser of a network whose output is 0: the linear estimate."""

    def denoise(x, sigma, _number):
        level = sigma.expand(len(x))
        return p.denoised(p.inputs(x, level)[2], level, torch.zeros_like(x))

    return denoise


@pytest.mark.parametrize("steps", [2, 10])
def test_sampling_with_an_idle_network_gives_noise_of_the_measured_covariance_in_any_number_of_steps(steps):
    """Sigma^1/2 z itself, though sampling starts at twice the leading mode's norm as training measures it."""
    p, _ = measured(3)
    noise = torch.randn(8, 2, 64, 64, generator=torch.Generator().manual_seed(7))
    high = 2 * float(p.mode_variance[0].sqrt())
    out = sample_trig(idle(p), noise, steps, p, 0.02, high).flatten(1)
    scores, unit = out @ p.modes.T, noise.flatten(1) @ p.modes.T
    torch.testing.assert_close(scores, unit * p.mode_variance.sqrt(), rtol=1e-3, atol=1e-3)
    rest = noise.flatten(1) - unit @ p.modes
    torch.testing.assert_close(out - scores @ p.modes, rest * p.rest_variance.sqrt(), rtol=1e-3, atol=1e-3)


def test_unit_noise_is_given_the_covariance_of_residual_and_noise():
    p, residual = measured(3)
    g = torch.Generator().manual_seed(10)
    mixed = (residual + 3.0 * torch.randn(residual.shape, generator=g)).flatten(1)
    drawn = p.noisy(torch.randn(residual.shape, generator=g), torch.tensor(3.0)).flatten(1)
    # 600 wafers: four standard errors of a ratio of two standard deviations
    np.testing.assert_allclose(
        (drawn @ p.modes.T).std(0), (mixed @ p.modes.T).std(0), rtol=4 / len(residual) ** 0.5
    )
    assert abs(float(drawn.std() / mixed.std()) - 1) < 0.01


@pytest.mark.parametrize("sigma", [0.02, 1.0, 50.0])
def test_output_turns_a_denoised_map_back_into_the_networks_output(sigma):
    p, residual = measured(3)
    g = torch.Generator().manual_seed(11)
    x, raw = residual[:4] + sigma, torch.randn(4, 2, 64, 64, generator=g)
    level = torch.full((4,), sigma)
    answer = p.denoised(p.inputs(x, level)[2], level, raw)
    torch.testing.assert_close(p.output(answer, x, torch.tensor(sigma)), raw, rtol=0, atol=5e-3)


def test_conditional_mean_comes_back_from_what_a_finite_noise_leaves_of_it():
    """Bayes for N(m, Sigma), dense, with numpy: averaged over x it is (1 - Sigma (Sigma + sigma^2)^-1) m."""
    p, residual = measured(3)
    u, v, rest = p.modes.double().numpy(), p.mode_variance.double().numpy(), float(p.rest_variance)
    sigma, m = 20.0, residual[:2].flatten(1).double().numpy()
    scores = m @ u.T
    left = m - (scores * v / (v + sigma**2)) @ u - rest / (rest + sigma**2) * (m - scores @ u)
    found = p.unshrunk(torch.from_numpy(left).float().view(2, 2, 64, 64), torch.tensor(sigma))
    np.testing.assert_allclose(found.flatten(1).numpy(), m, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_minimiser_of_the_loss_is_the_ideal_denoiser(sigma, sigma_data):
    """The best affine F under the training loss denoises N(MEAN, SD^2) as Bayes does, whatever sigma_data is."""
    g = torch.Generator().manual_seed(8)
    p = Preconditioning(sigma_data)
    y = MEAN + SD * torch.randn(24, 2, 64, 64, generator=g)
    x = y + sigma * torch.randn(y.shape, generator=g)
    level, valid = torch.full((24,), sigma), torch.ones(24, 1, 64, 64)
    read, _, linear = p.inputs(x, level)
    affine = torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.LBFGS([affine], max_iter=30, line_search_fn="strong_wolfe")

    def denoised():
        return p.denoised(linear, level, affine[0] * read + affine[1])

    def loss():
        optimiser.zero_grad()
        value = p.loss(denoised() - y, level, valid).mean()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        torch.testing.assert_close(denoised(), ideal(x, sigma, 0), atol=0.02, rtol=0)


def test_few_wafers_fill_few_modes_and_the_idle_loss_stays_one():
    residual, _ = gaussian_data(200)
    p = Preconditioning(float(residual.std()), 64)
    p.measure(residual, torch.ones(200, 1, 64, 64))
    assert int(p.modes.any(1).sum()) == 50
    torch.testing.assert_close(p.modes[:50] @ p.modes[:50].T, torch.eye(50), atol=1e-3, rtol=0)
    assert torch.isfinite(p.mode_variance).all()
    level = torch.full((200,), 1.0)
    x = residual + torch.randn(residual.shape, generator=torch.Generator().manual_seed(9))
    answer = idle(p)(x, torch.tensor(1.0), 0)
    assert abs(float(p.loss(answer - residual, level, torch.ones(200, 1, 64, 64)).mean()) - 1) < 0.1


def test_modes_that_cannot_be_measured_are_refused_with_the_setting():
    with pytest.raises(TrainingError, match=r"3 wafers; set train\.residual_modes: 0"):
        Preconditioning(0.5, 2).measure(torch.randn(3, 2, 64, 64), torch.ones(3, 1, 64, 64))
    with pytest.raises(TrainingError, match=r"lower train\.residual_modes"):
        Preconditioning(0.5, 2).measure(torch.zeros(12, 2, 64, 64), torch.ones(12, 1, 64, 64))


def test_measuring_leaves_the_random_state_alone():
    residual, _ = gaussian_data(16)
    before = torch.get_rng_state()
    Preconditioning(0.5, 2).measure(residual, torch.ones(16, 1, 64, 64))
    assert torch.equal(torch.get_rng_state(), before)
