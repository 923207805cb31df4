"""Each kind of discriminator sees both sides, trains only itself, and never the teacher."""

import copy
import math

import pytest
import torch

from ikddit.networks.alignment import linear_cka, token_cka, token_cosine
from ikddit.networks.discriminator import (
    CosineRegression,
    Discriminator,
    ImplicitDiscriminator,
    Prototypes,
    TokenContext,
    hinge_discriminator,
    make_discriminator,
    standardise,
)

WIDTH, CONTEXT = 32, 8
KINDS = ["implicit", "cosine", "prototype"]


def made_context(batch: int, tokens: int, seed: int) -> TokenContext:
    g = torch.Generator().manual_seed(seed)
    return TokenContext(
        torch.randn(batch, tokens, WIDTH, generator=g) * 0.1,
        torch.randn(batch, generator=g),
        torch.randn(batch, 3 * CONTEXT, generator=g),
    )


def train(judge: Discriminator, draw, steps: int, rate: float = 3e-3) -> list[float]:
    """Own losses of a discriminator on fresh (real, fake) tokens in every step."""
    optimiser = torch.optim.Adam([p for p in judge.parameters() if p.requires_grad], lr=rate)
    losses = []
    for step in range(steps):
        real, fake = draw(step)
        own = judge.judge(real, fake, made_context(*real.shape[:2], step)).own
        optimiser.zero_grad()
        own.backward()
        optimiser.step()
        judge.after_step()
        losses.append(float(own.detach()))
    return losses


def tokens(seed: int, shift: float = 0.0) -> torch.Tensor:
    """Noise tokens; `shift` adds a fixed direction, which z-scoring does not take away."""
    noise = torch.randn(8, 12, WIDTH, generator=torch.Generator().manual_seed(seed))
    direction = torch.linspace(-1, 1, WIDTH)
    return noise + shift * direction


def test_implicit_loss_falls_when_teacher_and_student_differ():
    torch.manual_seed(0)
    judge = ImplicitDiscriminator(WIDTH, CONTEXT)
    losses = train(judge, lambda step: (tokens(2 * step, 2.0), tokens(2 * step + 1, -2.0)), 60)
    assert losses[0] > 1.6
    assert sum(losses[-10:]) / 10 < 0.4
    assert judge.judge(tokens(900, 2.0), tokens(901, -2.0), made_context(8, 12, 9)).accuracy > 0.95


def test_implicit_loss_stays_at_chance_when_they_are_the_same():
    torch.manual_seed(0)
    judge = ImplicitDiscriminator(WIDTH, CONTEXT)

    def same(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        both = tokens(step, 2.0)
        return both, both.clone()

    losses = train(judge, same, 60)
    # relu(1 - l) + relu(1 + l) >= 2 for every logit: knowing nothing is the best one can do
    assert min(losses) > 2 - 0.02
    both = tokens(900, 2.0)
    judge.eval()
    assert judge.judge(both, both.clone(), made_context(8, 12, 9)).accuracy == pytest.approx(0.5, abs=0.01)


def test_implicit_judges_the_place_and_not_only_the_token():
    """Same tokens on both sides, told apart by nothing but sigma: the logit moves with its context."""
    torch.manual_seed(0)
    judge = ImplicitDiscriminator(WIDTH, CONTEXT).eval()
    x, a = tokens(0), made_context(8, 12, 1)
    for changed in (
        TokenContext(a.position + 1, a.c_noise, a.pooled),
        TokenContext(a.position, a.c_noise + 1, a.pooled),
        TokenContext(a.position, a.c_noise, a.pooled + 1),
    ):
        assert (judge(x, changed) - judge(x, a)).abs().max() > 1e-4


def test_implicit_is_lipschitz_in_the_token_layer_by_layer():
    torch.manual_seed(0)
    judge = ImplicitDiscriminator(WIDTH, CONTEXT)
    train(judge, lambda step: (tokens(2 * step, 2.0), tokens(2 * step + 1, -2.0)), 20)
    for layer in (judge.token, judge.layers[1], judge.layers[3]):
        assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(1, abs=0.05)


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    assert float(hinge_discriminator(real, fake)) == pytest.approx((0 + 0.5) / 2 + (0 + 1.25) / 2)


def test_cosine_head_learns_what_the_student_knows_of_the_teacher():
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0]
    judge = CosineRegression(WIDTH)
    losses = train(judge, lambda step: (tokens(step) @ turn, tokens(step)), 200)
    assert losses[0] > 0.9
    assert losses[-1] < 0.2
    assert judge.judge(tokens(900) @ turn, tokens(900), made_context(8, 12, 9)).accuracy > 0.9


def test_cosine_stays_at_chance_when_the_student_knows_nothing():
    torch.manual_seed(0)
    judge = CosineRegression(WIDTH)
    losses = train(judge, lambda step: (tokens(2 * step), tokens(2 * step + 1)), 100)
    assert min(losses) > 0.9


def test_prototype_loss_is_the_cross_entropy_of_the_two_assignments():
    torch.manual_seed(0)
    judge = Prototypes(WIDTH, prototypes=5)
    judge.centre.copy_(torch.linspace(-0.1, 0.1, 5))
    real, fake = tokens(1)[:1, :2], tokens(2)[:1, :2]
    total = 0.0
    with torch.no_grad():
        for place in range(2):
            teacher = (judge.teacher_head(real)[0, place] - judge.centre) / 0.02
            student = judge.head(fake)[0, place] / 0.1
            p = [math.exp(v) for v in teacher.tolist()]
            q = [math.exp(v) for v in student.tolist()]
            total -= sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))
    judged = judge.judge(real, fake, made_context(1, 2, 0))
    assert float(judged.own.detach()) == pytest.approx(total / 2, rel=1e-4)
    assert float(judged.student.detach()) == pytest.approx(total / 2, rel=1e-4)


def test_prototype_centre_and_teacher_head_follow_their_formulas():
    torch.manual_seed(0)
    judge = Prototypes(WIDTH, prototypes=5, decay=0.9, centre_decay=0.8)
    with torch.no_grad():
        judge.head.prototypes.add_(1.0)
    before = judge.teacher_head.prototypes.clone()
    real = tokens(1)
    mean = judge.teacher_head(real).flatten(0, 1).mean(0)
    judge.judge(real, tokens(2), made_context(8, 12, 0))
    judge.after_step()
    torch.testing.assert_close(judge.centre, 0.2 * mean)
    torch.testing.assert_close(judge.teacher_head.prototypes, 0.9 * before + 0.1 * judge.head.prototypes)


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_moves_no_buffer_but_the_statistics_that_processes_share(kind):
    """Two processes with one set of weights and different rows: what else differed would have to be shared too."""
    torch.manual_seed(0)
    one = make_discriminator(kind, WIDTH, CONTEXT).train()
    other = copy.deepcopy(one)
    for judge, seed in ((one, 1), (other, 5)):
        judge.judge(tokens(seed), tokens(seed + 1), made_context(8, 12, seed))
        judge.after_step()
    shared = {id(values) for values in one.batch_statistics()}
    moved = dict(other.named_buffers())
    for name, values in one.named_buffers():
        assert torch.equal(values, moved[name]) == (id(values) not in shared), name


def test_prototypes_learn_to_agree_and_do_not_collapse():
    torch.manual_seed(0)
    judge = Prototypes(WIDTH)
    centres = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(5)) * 3

    def draw(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        kind = torch.randint(0, 6, (8, 12), generator=torch.Generator().manual_seed(step))
        return centres[kind] + 0.3 * tokens(2 * step), -centres[kind] + 0.3 * tokens(2 * step + 1)

    losses = train(judge, draw, 250, rate=1e-3)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    real, fake = draw(900)
    target, guess = judge.assignments(real, fake)
    assert len(target.argmax(-1).unique()) >= 3
    assert float((target.argmax(-1) == guess.argmax(-1)).float().mean()) > 0.5  # chance: 1/256


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_keep_to_their_own_side(kind):
    torch.manual_seed(0)
    judge = make_discriminator(kind, WIDTH, CONTEXT)
    real, fake = tokens(1).requires_grad_(), tokens(2).requires_grad_()
    judged = judge.judge(real, fake, made_context(8, 12, 0))
    judged.student.backward()
    assert fake.grad.abs().sum() > 0
    assert all(p.grad is None for p in judge.parameters())
    fake.grad = None
    judged.own.backward()
    assert fake.grad is None
    assert real.grad is None
    trained = [p for p in judge.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize("kind", KINDS)
def test_students_loss_moves_its_tokens_towards_the_teachers(kind):
    torch.manual_seed(0)
    judge = make_discriminator(kind, WIDTH, CONTEXT)
    train(judge, lambda step: (tokens(step, 2.0), tokens(step, -2.0)), 60)
    real, fake = tokens(900, 2.0), tokens(900, -2.0).requires_grad_()
    context = made_context(8, 12, 0)
    optimiser = torch.optim.Adam([fake], lr=0.05)
    first = float(judge.judge(real, fake, context).student.detach())
    for _ in range(40):
        optimiser.zero_grad()
        judge.judge(real, fake, context).student.backward()
        optimiser.step()
    assert float(judge.judge(real, fake, context).student.detach()) < first - 0.01


def test_standardised_tokens_forget_scale_and_offset():
    x = tokens(0)
    torch.testing.assert_close(standardise(x), standardise(5 * x + 3), rtol=1e-4, atol=1e-4)


def direct_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """CKA through its definition: HSIC of the centred Gram matrices (1905.00414, eq. 3)."""
    m = len(x)
    h = torch.eye(m, dtype=torch.float64) - 1 / m
    a, b = x.double() @ x.double().T, y.double() @ y.double().T

    def hsic(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return torch.trace(first @ h @ second @ h)

    return float(hsic(a, b) / (hsic(a, a) * hsic(b, b)).sqrt())


def test_cka_is_its_definition_through_gram_matrices():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=g) + 2
    y = torch.cat([x[:, :3] * 2, torch.randn(40, 5, generator=g)], dim=1)
    assert linear_cka(x, y) == pytest.approx(direct_cka(x, y), abs=1e-5)
    assert 0.1 < linear_cka(x, y) < 0.9


def test_cka_ignores_rotation_scale_and_shift_and_falls_to_zero_for_strangers():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4000, 6, generator=g), torch.randn(4000, 6, generator=g)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g))[0]
    assert linear_cka(x, 3 * x @ turn + 7) == pytest.approx(1.0, abs=1e-4)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), abs=1e-6)
    assert linear_cka(x, y) < 0.02
    squeezed = x * torch.tensor([10.0, 1, 1, 1, 1, 1])  # not isotropic: CKA sees it
    assert linear_cka(x, squeezed) < 0.9


def test_token_alignment_is_one_for_twins_and_cosine_alone_sees_a_rotation():
    x = tokens(0)
    assert token_cosine(x, 2 * x + 1) == pytest.approx(1.0, abs=1e-4)
    assert token_cka(x, 2 * x + 1) == pytest.approx(1.0, abs=1e-4)
    swapped = x.flip(-1)  # a permutation of the width
    assert abs(token_cosine(x, swapped)) < 0.1
    assert token_cka(x, swapped) == pytest.approx(1.0, abs=1e-4)
