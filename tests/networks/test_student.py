"""The student's promises: identity blocks at the start, dense path, masks that gather and scatter."""

import pytest
import torch

from ikddit.networks.blocks import Block
from ikddit.networks.masking import complement, draw_visible, gather_tokens, scatter_tokens
from ikddit.networks.outline import groups_of_four
from ikddit.networks.student import Student
from made_students import made_condition, woken


def test_block_is_the_identity_at_initialisation():
    block = Block(32, 4, 16)
    x, c = torch.randn(2, 6, 32), torch.randn(2, 32)
    context = block.cross.attention.key_value(torch.randn(2, 5, 16))
    assert torch.equal(block(x, c, context, torch.ones(2, 1, 1, 5, dtype=torch.bool)), x)


def test_student_output_is_zero_at_initialisation():
    student = Student("T/8", 16)
    cache = student.encoder.cache(made_condition(2))
    out, _ = student(torch.randn(2, 2, 64, 64), torch.ones(2, 1, 64, 64), torch.zeros(2), cache)
    assert out.shape == (2, 2, 64, 64)
    assert torch.count_nonzero(out) == 0


def test_hidden_token_still_sees_its_own_pixels():
    torch.manual_seed(0)
    student = Student("T/8", 16)
    torch.nn.init.normal_(student.decoder.head.weight, std=0.1)
    cache = student.encoder.cache(made_condition(1))
    visible = torch.arange(30, 60)[None]  # the top half is hidden
    x = torch.randn(1, 2, 64, 64)
    changed = x.clone()
    changed[:, :, :8, 8:16] += 1.0  # token 0, hidden: the corner patch is no token
    valid, noise = torch.ones(1, 1, 64, 64), torch.zeros(1)
    a, _ = student(x, valid, noise, cache, visible)
    b, _ = student(changed, valid, noise, cache, visible)
    assert (a - b)[:, :, :8, 8:16].abs().max() > 1e-4


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.7])
def test_visible_and_hidden_make_all_tokens_once(ratio):
    visible = draw_visible(3, 64, ratio, torch.Generator().manual_seed(1))
    hidden = complement(visible, 64)
    both = torch.cat([visible, hidden], dim=1).sort(1).values
    assert torch.equal(both, torch.arange(64).expand(3, -1))


def test_half_mask_shows_two_of_every_two_by_two_group():
    visible = draw_visible(
        4, 64, 0.5, torch.Generator().manual_seed(2), groups_of_four(torch.arange(64), 8)
    )
    seen = torch.zeros(4, 64).scatter_(1, visible, 1.0).view(4, 8, 8)
    groups = seen.unfold(1, 2, 2).unfold(2, 2, 2).sum((-1, -2))
    assert torch.equal(groups, torch.full_like(groups, 2.0))


def test_scatter_undoes_gather():
    x = torch.randn(2, 16, 4)
    visible = draw_visible(2, 16, 0.5, torch.Generator().manual_seed(3))
    assert torch.equal(scatter_tokens(x, visible, gather_tokens(x, visible)), x)
