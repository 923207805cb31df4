"""Eq. 8 of IKDDiT: L = L_DSM + lambda1 * L_MAE + lambda2 * L_D, every term apart."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ikddit.diffusion.edm import Preconditioning, masked_mean
from ikddit.embedding.encoders import ConditionTokens
from ikddit.networks.discriminator import (
    ImplicitDiscriminator,
    accuracy,
    hinge_discriminator,
    hinge_generator,
    standardise,
)
from ikddit.networks.masking import gather_tokens
from ikddit.networks.student import Encoder, Student

TEACHER_NOISE = 0.5
"""The teacher sees the same noise at this share of sigma: it knows a little more than the student."""


@dataclass(frozen=True)
class TrainingBatch:
    """One step's data and random draws; maps are residuals in network units, zero where invalid."""

    residual: Float[Tensor, "B 2 64 64"]
    valid: Float[Tensor, "B 1 64 64"]
    condition: ConditionTokens
    sigma: Float[Tensor, " B"]
    noise: Float[Tensor, "B 2 64 64"]
    visible: Int[Tensor, "B V"] | None
    path_drop: Bool[Tensor, " B"] | None = None
    """Rows whose decoder must do without the deep encoder; None: no row."""


@dataclass(frozen=True)
class Terms:
    """The terms of Eq. 8 and what is watched beside them."""

    dsm: Tensor
    mae: Tensor
    generator: Tensor
    discriminator: Tensor
    accuracy: float
    alignment: float

    def total(self, lambda1: float, lambda2: float) -> Tensor:
        """The student's loss."""
        return self.dsm + lambda1 * self.mae + lambda2 * self.generator


def compute_terms(
    student: Student,
    teacher: Encoder,
    discriminator: ImplicitDiscriminator | None,
    precondition: Preconditioning,
    batch: TrainingBatch,
) -> Terms:
    """Forward passes of student, teacher and discriminator on one batch.

    The student's tokens are detached in the discriminator's own loss, and the teacher gets no gradient at all.
    """
    sigma = batch.sigma.view(-1, 1, 1, 1)
    c_skip, c_out, c_in, c_noise = precondition.coefficients(sigma)
    noisy = (batch.residual + sigma * batch.noise) * batch.valid
    encoder = student.encoder
    cache = encoder.cache(batch.condition)
    raw, taps = student(
        c_in * noisy,
        batch.valid,
        c_noise.flatten(),
        cache,
        batch.visible,
        taps=(encoder.student_tap,),
        path_drop=batch.path_drop,
    )
    denoised = c_skip * noisy + c_out * raw.float()
    error = denoised - batch.residual
    dsm = (precondition.weight(batch.sigma) * masked_mean(error.square(), batch.valid)).mean()
    mae = (masked_mean(error.abs(), batch.valid) / precondition.sigma_data).mean()
    zero = dsm.new_zeros(())
    if discriminator is None:
        return Terms(dsm, mae, zero, zero, 0.5, 0.0)

    fake = taps[0]
    with torch.no_grad():
        real = teacher_tokens(teacher, precondition, batch)
    position = encoder.position.expand(len(fake), -1, -1)
    if batch.visible is not None:
        real, position = gather_tokens(real, batch.visible), gather_tokens(position, batch.visible)
    context = (position, c_noise.flatten(), batch.condition.pooled)
    real_logits, fake_logits = discriminator(real, *context), discriminator(fake.detach(), *context)
    # the student is judged by a discriminator that its own gradient must not train
    for parameter in discriminator.parameters():
        parameter.requires_grad_(False)
    generator = hinge_generator(discriminator(fake, *context))
    for parameter in discriminator.parameters():
        parameter.requires_grad_(True)
    alignment = torch.nn.functional.cosine_similarity(standardise(real), standardise(fake.detach()), dim=-1)
    return Terms(
        dsm,
        mae,
        generator,
        hinge_discriminator(real_logits, fake_logits),
        accuracy(real_logits, fake_logits),
        float(alignment.mean()),
    )


def teacher_tokens(
    teacher: Encoder, precondition: Preconditioning, batch: TrainingBatch
) -> Float[Tensor, "B N D"]:
    """The teacher's tapped tokens of all patches, at a lower noise of the same noise path."""
    sigma = (TEACHER_NOISE * batch.sigma).view(-1, 1, 1, 1)
    _, _, c_in, c_noise = precondition.coefficients(sigma)
    noisy = (batch.residual + sigma * batch.noise) * batch.valid
    cache = teacher.cache(batch.condition)
    tokens, modulation = teacher.shallow(c_in * noisy, batch.valid, c_noise.flatten(), cache)
    _, taps = teacher.deepen(tokens, modulation, cache, taps=(teacher.teacher_tap,))
    return taps[0]
