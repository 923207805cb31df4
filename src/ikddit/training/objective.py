"""Eq. 8 of IKDDiT: L = L_DSM + lambda1 * L_MAE + lambda2 * L_D, every term apart."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ikddit.diffusion.edm import Preconditioning, masked_mean
from ikddit.embedding.encoders import ConditionTokens
from ikddit.networks.alignment import token_cka, token_cosine
from ikddit.networks.discriminator import Discriminator, TokenContext
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
    whole: bool | None = None
    """Whether every token of every wafer has a valid pixel; None: not known."""


@dataclass(frozen=True)
class Terms:
    """The terms of Eq. 8 and what is watched beside them."""

    dsm: Tensor
    mae: Tensor
    generator: Tensor
    discriminator: Tensor
    accuracy: Tensor
    """Of the discriminator; NaN, like both alignments, where there is none."""
    alignment: Tensor
    """Cosine of teacher and student tokens."""
    cka: Tensor
    """Linear CKA of the same tokens."""

    def total(self, lambda1: float, lambda2: float) -> Tensor:
        """The student's loss."""
        return self.dsm + lambda1 * self.mae + lambda2 * self.generator


def compute_terms(
    student: Student,
    teacher: Encoder,
    discriminator: Discriminator | None,
    precondition: Preconditioning,
    batch: TrainingBatch,
) -> Terms:
    """Forward passes of student, teacher and discriminator on one batch.

    The student's tokens are detached in the discriminator's own loss, and the teacher gets no gradient at all.
    """
    sigma = batch.sigma.view(-1, 1, 1, 1)
    noisy = (batch.residual + sigma * batch.noise) * batch.valid
    read, c_noise, linear = precondition.inputs(noisy, batch.sigma)
    encoder = student.encoder
    cache = encoder.cache(batch.condition)
    raw, taps = student(
        read,
        batch.valid,
        c_noise,
        cache,
        batch.visible,
        taps=(encoder.student_tap,),
        path_drop=batch.path_drop,
        whole=batch.whole,
    )
    error = precondition.denoised(linear, batch.sigma, raw) - batch.residual
    dsm = precondition.loss(error, batch.sigma, batch.valid).mean()
    mae = (masked_mean(error.abs(), batch.valid) / precondition.sigma_data).mean()
    zero = dsm.new_zeros(())
    if discriminator is None:
        nothing = dsm.new_full((), math.nan)
        return Terms(dsm, mae, zero, zero, nothing, nothing, nothing)

    fake = taps[0]
    with torch.no_grad():
        real = teacher_tokens(teacher, precondition, batch)
    position = encoder.position.expand(len(fake), -1, -1)
    if batch.visible is not None:
        real, position = gather_tokens(real, batch.visible), gather_tokens(position, batch.visible)
    # the discriminator judges tokens; encoders that learn (embed.contrastive: false) learn from the student alone
    context = TokenContext(position, c_noise, batch.condition.pooled.detach())
    judged = discriminator.judge(real, fake, context)
    return Terms(
        dsm,
        mae,
        judged.student,
        judged.own,
        judged.accuracy,
        token_cosine(real, fake),
        token_cka(real, fake),
    )


def teacher_tokens(
    teacher: Encoder, precondition: Preconditioning, batch: TrainingBatch
) -> Float[Tensor, "B N D"]:
    """The teacher's tapped tokens of all patches, at a lower noise of the same noise path."""
    sigma = (TEACHER_NOISE * batch.sigma).view(-1, 1, 1, 1)
    noisy = (batch.residual + sigma * batch.noise) * batch.valid
    read, c_noise, _ = precondition.inputs(noisy, sigma.flatten())
    # the blocks after the tap would compute what nobody looks at
    tap = teacher.teacher_tap
    cache = teacher.cache(batch.condition, until=tap)
    known = teacher.attendable(batch.valid, batch.whole)
    tokens, modulation = teacher.shallow(read, batch.valid, c_noise, cache, known)
    _, taps = teacher.deepen(tokens, modulation, cache, (tap,), known, until=tap)
    return taps[0]
