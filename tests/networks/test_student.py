"""The student's promises: identity blocks at the start, dense path, masks that gather and scatter."""

import pytest
import torch
from made_students import made_condition, woken

from ikddit.networks.blocks import Block
from ikddit.networks.masking import complement, draw_visible, gather_tokens, scatter_tokens
from ikddit.networks.outline import groups_of_four
from ikddit.networks.student import Student


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
    visible = draw_visible(4, 64, 0.5, torch.Generator().manual_seed(2), groups_of_four(torch.arange(64), 8))
    seen = torch.zeros(4, 64).scatter_(1, visible, 1.0).view(4, 8, 8)
    groups = seen.unfold(1, 2, 2).unfold(2, 2, 2).sum((-1, -2))
    assert torch.equal(groups, torch.full_like(groups, 2.0))


def test_scatter_undoes_gather():
    x = torch.randn(2, 16, 4)
    visible = draw_visible(2, 16, 0.5, torch.Generator().manual_seed(3))
    assert torch.equal(scatter_tokens(x, visible, gather_tokens(x, visible)), x)


def test_complement_scattered_back_makes_the_whole():
    x, base = torch.randn(2, 20, 4), torch.zeros(2, 20, 4)
    visible = draw_visible(2, 20, 0.7, torch.Generator().manual_seed(4))
    hidden = complement(visible, 20)
    half = scatter_tokens(base, visible, gather_tokens(x, visible))
    assert torch.equal(gather_tokens(half, hidden), torch.zeros(2, 14, 4))
    assert torch.equal(scatter_tokens(half, hidden, gather_tokens(x, hidden)), x)


def test_mask_ratio_zero_is_the_full_model():
    student = woken(Student("T/8", 16))
    cache = student.encoder.cache(made_condition(2))
    everything = draw_visible(2, 60, 0.0, torch.Generator().manual_seed(5))
    inputs = (torch.randn(2, 2, 64, 64), torch.ones(2, 1, 64, 64), torch.randn(2), cache)
    with torch.no_grad():
        full, full_taps = student(*inputs, None, taps=(1, 3))
        masked, taps = student(*inputs, everything, taps=(1, 3))
    # a gathered copy has another memory layout, so the products are summed in another order
    torch.testing.assert_close(full, masked, rtol=1e-4, atol=1e-5)
    assert float(full.std()) > 1e-3
    torch.testing.assert_close(full_taps, taps, rtol=1e-4, atol=1e-5)


def test_hidden_share_changes_the_output_of_a_woken_student():
    student = woken(Student("T/8", 16))
    cache = student.encoder.cache(made_condition(2))
    inputs = (torch.randn(2, 2, 64, 64), torch.ones(2, 1, 64, 64), torch.zeros(2), cache)
    visible = draw_visible(2, 60, 0.5, torch.Generator().manual_seed(6))
    with torch.no_grad():
        assert not torch.allclose(student(*inputs)[0], student(*inputs, visible)[0], atol=1e-3)


def test_all_gates_are_zero_at_step_0():
    student = Student("T/8", 16)
    blocks = [*student.encoder.dense, *student.encoder.deep, *student.decoder.blocks]
    assert len(blocks) == 6
    for block in blocks:
        parts = block.modulation(torch.randn(3, 128))
        assert torch.count_nonzero(parts) == 0
        if block.cross is not None:
            assert torch.count_nonzero(torch.tanh(block.cross.gate)) == 0
    assert sum(block.cross is not None for block in blocks) == 4


def test_step_0_is_the_identity_on_conditions():
    """Through live heads too, no condition reaches the output while the gates are shut."""
    student = Student("T/8", 16)
    torch.nn.init.normal_(student.decoder.head.weight, std=0.1)
    x, valid, visible = torch.randn(2, 2, 64, 64), torch.ones(2, 1, 64, 64), torch.arange(30).expand(2, -1)
    encoder = student.encoder
    with torch.no_grad():
        a, _ = student(x, valid, torch.zeros(2), encoder.cache(made_condition(2, seed=1)), visible)
        b, _ = student(x, valid, torch.ones(2), encoder.cache(made_condition(2, seed=2)), visible)
    assert torch.equal(a, b)
    assert float(a.std()) > 0


@pytest.mark.parametrize("gate", ["adaln", "cross"])
def test_each_kind_of_gate_lets_the_condition_in_once_open(gate):
    student = Student("T/8", 16)
    torch.nn.init.normal_(student.decoder.head.weight, std=0.1)
    for block in student.encoder.deep_blocks:
        with torch.no_grad():
            if gate == "cross":
                block.cross.gate.fill_(0.5)
            else:
                block.modulation.weight.normal_(std=0.1)
    x, valid = torch.randn(2, 2, 64, 64), torch.ones(2, 1, 64, 64)
    encoder = student.encoder
    a, _ = student(x, valid, torch.zeros(2), encoder.cache(made_condition(2, seed=1)))
    b, _ = student(x, valid, torch.zeros(2), encoder.cache(made_condition(2, seed=2)))
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize(("channels", "outline"), [(2, "wafer"), (3, "wafer"), (3, "square"), (4, "square")])
def test_every_channel_is_read_and_written(channels, outline):
    student = woken(Student("T/8", 16, channels, outline))
    cache = student.encoder.cache(made_condition(1))
    x, valid = torch.randn(1, channels, 64, 64), torch.ones(1, 1, 64, 64)
    with torch.no_grad():
        before, _ = student(x, valid, torch.zeros(1), cache)
        assert before.shape == x.shape
        assert (before.std((0, 2, 3)) > 1e-3).all()
        for channel in range(channels):
            changed = x.clone()
            changed[:, channel] += 1.0
            after, _ = student(changed, valid, torch.zeros(1), cache)
            assert (after - before).abs().max() > 1e-3, channel


def test_patches_come_back_where_they_were_cut():
    """With an identity for a network the decoder's un-patching is the inverse of the encoder's cutting."""
    student = Student("T/8", 16, outline="square")
    patch = torch.nn.functional.unfold(torch.arange(2 * 4096.0).view(1, 2, 64, 64), 8, stride=8)
    decoder = student.decoder
    decoder.fuse = decoder.norm = torch.nn.Identity()
    decoder.blocks = torch.nn.ModuleList()
    # the decoder writes pixel by pixel, channels last; unfold gives channel by channel
    order = torch.arange(128).view(2, 64).T.flatten()
    decoder.head = torch.nn.Identity()
    tokens = patch.transpose(1, 2)[..., order]
    width = tokens.shape[-1]
    out = decoder(tokens[..., : width // 2], tokens[..., width // 2 :], torch.zeros(1, 128))
    assert torch.equal(out, torch.arange(2 * 4096.0).view(1, 2, 64, 64))
