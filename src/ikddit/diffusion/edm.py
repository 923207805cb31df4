"""Preconditioning and training noise: EDM's (Karras et al. 2206.00364), and EDM's for data with wafer-wide modes."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ikddit.dataset.components import component_scores
from ikddit.errors import TrainingError

MEASURED_WAFERS = 20_000
"""Modes are measured on at most so many wafers: two thirds of a gigabyte."""
CHUNK = 512


class Preconditioning(nn.Module):
    """D(x; sigma) = W x + C_out F, so that F's target has unit variance at every noise level.

    EDM (Karras et al. 2206.00364, table 1) takes the data for white with one standard deviation. Overlay
    residuals are not: a few wafer-wide modes carry most of their variance. Their measured covariance

        Sigma = sum_k (v_k - v) u_k u_k' + v I      (orthonormal modes u_k, variances v_k, remainder v)

    gives W = Sigma (Sigma + sigma^2)^-1, the best linear denoiser, and C_out = (Sigma sigma^2 (Sigma +
    sigma^2)^-1)^1/2, the covariance it leaves: with F = 0 the samples already have the residual's covariance,
    and F learns what depends on the conditions or is not Gaussian. F reads c_in x, of unit variance, and W x.
    Without modes this is EDM itself, with c_skip, c_out and c_in as in the paper.

    >>> p = Preconditioning(0.5)
    >>> [round(float(v), 4) for v in p.coefficients(torch.tensor(0.5))]
    [0.5, 0.3536, 1.4142, -0.1733]
    """

    modes: Tensor
    mode_variance: Tensor
    rest_variance: Tensor

    def __init__(self, sigma_data: float, modes: int = 0) -> None:
        """Start as EDM; `modes` makes room for that many, filled by `measure` or a state dict.

        Args:
            sigma_data: standard deviation of the residual on valid pixels, in network units.
            modes: number of modes K, >= 0.
        """
        super().__init__()
        self.sigma_data = sigma_data
        self.register_buffer("modes", torch.zeros(modes, 2 * 64 * 64))
        self.register_buffer("mode_variance", torch.full((modes,), sigma_data**2))
        self.register_buffer("rest_variance", torch.tensor(sigma_data**2))

    @property
    def extra_channels(self) -> int:
        """Input channels beside the noisy map: the linear estimate W x, in which the modes stand out."""
        return 2 if len(self.modes) else 0

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip and c_out of what is outside the modes, and c_in and c_noise, at `sigma`."""
        rest = self.rest_variance.to(sigma.device)
        c_in = (sigma**2 + self.sigma_data**2).rsqrt()
        return rest / (rest + sigma**2), sigma * (rest / (rest + sigma**2)).sqrt(), c_in, sigma.log() / 4

    def _mode_gains(self, sigma: Float[Tensor, " B"]) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:
        """Per mode: the linear denoiser's gain, and the standard deviation it leaves."""
        gain = self.mode_variance / (self.mode_variance + sigma[:, None] ** 2)
        return gain, sigma[:, None] * gain.sqrt()

    def _scaled(self, x: Tensor, rest: Tensor, per_mode: Tensor) -> Float[Tensor, "B 2 64 64"]:
        """Scale the modes of x by `per_mode` (B, K) and everything else by `rest` (B, 1, 1, 1)."""
        out = rest * x
        if len(self.modes):
            scores = x.flatten(1) @ self.modes.T
            out = out + ((scores * (per_mode - rest.flatten(1))) @ self.modes).view_as(x)
        return out

    def linear_estimate(
        self, x: Float[Tensor, "B 2 64 64"], sigma: Float[Tensor, " B"]
    ) -> Float[Tensor, "B 2 64 64"]:
        """W x: the best linear estimate of the residual from x = residual + sigma * noise."""
        gain, _ = self._mode_gains(sigma)
        return self._scaled(x, self.coefficients(sigma.view(-1, 1, 1, 1))[0], gain)

    def inputs(
        self, x: Float[Tensor, "B 2 64 64"], sigma: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B C 64 64"], Float[Tensor, " B"], Float[Tensor, "B 2 64 64"]]:
        """What the network reads: scaled map (with modes, W x beside it) and c_noise; and W x itself."""
        with torch.autocast(x.device.type, enabled=False):
            _, _, c_in, c_noise = self.coefficients(sigma.view(-1, 1, 1, 1))
            linear = self.linear_estimate(x, sigma)
            read = c_in * x
            if len(self.modes):
                read = torch.cat([read, linear / self.sigma_data], dim=1)
            return read, c_noise.flatten(), linear

    def denoised(
        self, linear: Float[Tensor, "B 2 64 64"], sigma: Float[Tensor, " B"], raw: Float[Tensor, "B 2 64 64"]
    ) -> Float[Tensor, "B 2 64 64"]:
        """D = W x + C_out F from the linear estimate and the network's output F."""
        with torch.autocast(raw.device.type, enabled=False):
            _, left = self._mode_gains(sigma)
            return linear + self._scaled(raw.float(), self.coefficients(sigma.view(-1, 1, 1, 1))[1], left)

    def noisy(self, unit: Float[Tensor, "B C H W"], sigma: Tensor) -> Float[Tensor, "B C H W"]:
        """(Sigma + sigma^2)^1/2 z: unit noise z with the covariance of residual + sigma * noise, sigma a scalar."""
        rest = (self.rest_variance + sigma**2).sqrt().view(1, 1, 1, 1)
        return self._scaled(unit, rest, (self.mode_variance + sigma**2).sqrt()[None])

    def output(
        self, denoised: Float[Tensor, "B C H W"], x: Float[Tensor, "B C H W"], sigma: Tensor
    ) -> Float[Tensor, "B C H W"]:
        """The network's output F behind an answer D(x; sigma), sigma a scalar above 0: `denoised` turned round."""
        level = sigma.view(1)
        gain, left = self._mode_gains(level)
        skip, c_out, _, _ = self.coefficients(level.view(1, 1, 1, 1))
        return self._scaled(denoised - self._scaled(x, skip, gain), 1 / c_out, 1 / left)

    def unshrunk(self, estimate: Float[Tensor, "B C H W"], sigma: Tensor) -> Float[Tensor, "B C H W"]:
        """The residual's mean from the mean of D(x; sigma) over x = (Sigma + sigma^2)^1/2 z, sigma a scalar above 0.

        That mean is (1 - W) of it, since noise of a finite sigma leaves something of the prior.
        """
        factor = 1 + self.mode_variance[None] / sigma**2
        return self._scaled(estimate, (1 + self.rest_variance / sigma**2).view(1, 1, 1, 1), factor)

    def turned(
        self, raw: Float[Tensor, "B C H W"], here: Tensor, there: Tensor, before: Tensor | None = None
    ) -> Float[Tensor, "B C H W"]:
        """`raw` times the angle between two noise levels, atan(sigma / sd) of each mode's standard deviation sd.

        Args:
            before: the noise level before `here`; set: times h^2 / (2 h'), with h the angle from `here` to `there` and
                h' that from `before` to `here`: the correction of Adams and Bashforth's second order.
        """

        def angle(variance: Tensor) -> Tensor:
            sd = variance.sqrt()
            step = (here / sd).atan() - (there / sd).atan()
            return step if before is None else step**2 / (2 * ((before / sd).atan() - (here / sd).atan()))

        return self._scaled(raw, angle(self.rest_variance).view(1, 1, 1, 1), angle(self.mode_variance)[None])

    def loss(
        self, error: Float[Tensor, "B 2 64 64"], sigma: Float[Tensor, " B"], valid: Float[Tensor, "B 1 64 64"]
    ) -> Float[Tensor, " B"]:
        """Squared error of D weighted by C_out^-2: 1 for F = 0 at every sigma (EDM's lambda without modes).

        With modes, they and the thousands of remaining dimensions count half each: what can be forecast is in
        the former, and would drown in the white noise of the latter.
        """
        with torch.autocast(error.device.type, enabled=False):
            error = error * valid
            c_out = self.coefficients(sigma.view(-1, 1, 1, 1))[1]
            if not len(self.modes):
                return masked_mean(error.square(), valid) / c_out.flatten() ** 2
            scores = error.flatten(1) @ self.modes.T
            rest = error - (scores @ self.modes).view_as(error)
            _, left = self._mode_gains(sigma)
            # the mean over the modes that `measure` has filled
            share = self.modes.any(1).float().mean().clamp(min=1 / len(self.modes))
            in_modes = (scores / left).square().mean(1) / share
            return (in_modes + masked_mean(rest.square(), valid) / c_out.flatten() ** 2) / 2

    @torch.no_grad()
    def measure(self, residual: Float[Tensor, "N 2 64 64"], valid: Float[Tensor, "N 1 64 64"]) -> None:
        """Fill the modes with the principal components of residuals (zero where invalid), largest first.

        A wafer's gaps shrink neither its scores nor what is left (`component_scores`).

        No more than a quarter as many modes as wafers are filled, since N components explain N wafers exactly and
        leave nothing for the rest; those not filled are zero vectors and change nothing. Of more than
        `MEASURED_WAFERS` wafers an evenly spaced part is measured.

        Raises:
            TrainingError: fewer than four wafers, or nothing is left outside the modes.
        """
        count = len(self.modes)
        if count == 0:
            return
        every = -(-len(residual) // MEASURED_WAFERS)
        rows, known = residual[::every].float().flatten(1), valid[::every]
        filled = min(count, len(rows) // 4)
        if filled == 0:
            raise TrainingError(
                f"residual modes cannot be measured on {len(rows)} wafers; set train.residual_modes: 0"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, _, v = torch.svd_lowrank(rows, q=min(count + 20, *rows.shape), niter=3)
        modes = v[:, :filled].T.contiguous()
        parts, squares = [], torch.zeros(())
        for start in range(0, len(rows), CHUNK):
            part, mask = rows[start : start + CHUNK], known[start : start + CHUNK]
            valid_part = mask.float().expand(-1, 2, -1, -1).flatten(1)
            parts.append(component_scores(part, valid_part, modes))
            squares += ((part - parts[-1] @ modes) * valid_part).square().sum()
        scores = torch.cat(parts)
        left = squares / (2 * known.sum() - filled * len(rows))
        if not 0 < float(left) < float("inf"):
            raise TrainingError(
                f"{filled} modes leave no variance of the residual ({float(left):g}); lower train.residual_modes"
            )
        self.modes.zero_()
        self.modes[:filled] = modes
        self.mode_variance.copy_(left)  # of a mode that is not filled: anything above 0
        self.mode_variance[:filled] = scores.square().mean(0).clamp(min=1e-12)
        self.rest_variance.copy_(left)


def draw_sigma(
    batch: int, p_mean: float, p_std: float, generator: torch.Generator
) -> Float[Tensor, " batch"]:
    """Log-normal training noise levels: ln sigma ~ N(p_mean, p_std^2)."""
    return (torch.randn(batch, generator=generator) * p_std + p_mean).exp()


def masked_mean(values: Float[Tensor, "B C H W"], valid: Float[Tensor, "B 1 H W"]) -> Float[Tensor, " B"]:
    """Mean of each map over its valid pixels (all channels); 0 where there are none."""
    total = (values * valid).sum((1, 2, 3))
    return total / (valid.sum((1, 2, 3)) * values.shape[1]).clamp(min=1)
