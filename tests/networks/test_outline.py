"""What is off the wafer or was not measured is never attended to, and its output is zero."""

import pytest
import torch
from made_students import made_condition, woken

from ikddit.networks.masking import draw_visible
from ikddit.networks.outline import groups_of_four, outline_positions
from ikddit.networks.student import Student
from ikddit.overlay.grid import wafer_grid


@pytest.mark.parametrize(("patch", "expected"), [(8, 60), (4, 216), (2, 812)])
def test_tokens_are_the_patches_with_a_usable_pixel(patch, expected):
    usable, side = wafer_grid().usable, 64 // patch
    by_hand = [
        row * side + col
        for row in range(side)
        for col in range(side)
        if usable[row * patch : (row + 1) * patch, col * patch : (col + 1) * patch].any()
    ]
    assert outline_positions("wafer", side).tolist() == by_hand
    assert len(by_hand) == expected


@pytest.mark.parametrize("patch", [8, 4, 2])
def test_half_mask_on_a_wafer_shows_half_and_two_of_every_whole_group(patch):
    place = outline_positions("wafer", 64 // patch)
    groups = groups_of_four(place, 64 // patch)
    visible = draw_visible(40, len(place), 0.5, torch.Generator().manual_seed(0), groups)
    assert visible.shape == (40, len(place) // 2)
    assert (visible.diff(dim=1) > 0).all()
    seen = torch.zeros(40, len(place)).scatter_(1, visible, 1.0)
    count = torch.zeros(40, int(groups.max()) + 1).index_add_(1, groups, seen)
    size = torch.bincount(groups)
    assert (count[:, size == 4] == 2).all()
    assert ((count - size / 2).abs() <= 1).all()
    # every token has the same chance: 40 draws of a fair coin, five standard deviations
    assert (seen.mean(0) - 0.5).abs().max() < 5 * 0.5 / 40**0.5


def wafer_valid(batch: int) -> torch.Tensor:
    return torch.from_numpy(wafer_grid().usable).float().expand(batch, 1, 64, 64).clone()


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_values_in_invalid_patches_change_no_valid_pixel(channels, masked):
    student = woken(Student("T/8", 16, channels))
    cache = student.encoder.cache(made_condition(2))
    valid = wafer_valid(2)
    valid[0, :, 16:40, 8:32] = 0  # nine patches of wafer 0 were not measured
    valid[1, :, 30, 30] = 0  # a flyer
    visible = draw_visible(2, 60, 0.5, torch.Generator().manual_seed(0)) if masked else None
    x = torch.randn(2, channels, 64, 64)
    changed = torch.where(valid > 0, x, 1e3 * torch.randn(2, channels, 64, 64))
    with torch.no_grad():
        a, _ = student(x, valid, torch.zeros(2), cache, visible)
        b, _ = student(changed, valid, torch.zeros(2), cache, visible)
    assert a.shape == (2, channels, 64, 64)
    assert float(a.std()) > 0
    assert torch.equal(a * valid, b * valid)


def test_unmeasured_patches_are_not_attended_to():
    student = woken(Student("T/8", 16))
    cache = student.encoder.cache(made_condition(2))
    valid = wafer_valid(2)
    valid[0, :, 16:24, 16:24] = 0  # patch (2, 2) of wafer 0
    token = int((student.encoder.place == 2 * 8 + 2).nonzero())
    x = torch.randn(2, 2, 64, 64)
    with torch.no_grad():
        a, _ = student(x, valid, torch.zeros(2), cache)
        student.encoder.position[token] += 10.0
        b, _ = student(x, valid, torch.zeros(2), cache)
    torch.testing.assert_close(a[0] * valid[0], b[0] * valid[0], rtol=0, atol=1e-5)
    assert (a[1] - b[1]).abs().max() > 1e-2  # wafer 1 was measured there


def test_masking_keys_equals_dropping_the_tokens():
    """The two ways of ignoring patches agree: the square grid with masked corners, the outline without them."""
    torch.manual_seed(0)
    square, outline = Student("T/8", 16, outline="square"), Student("T/8", 16)
    outline.load_state_dict(woken(square).state_dict())
    outline.eval()
    condition, x, valid = made_condition(2), torch.randn(2, 2, 64, 64), wafer_valid(2)
    with torch.no_grad():
        a, _ = square(x, valid, torch.zeros(2), square.encoder.cache(condition))
        b, _ = outline(x, valid, torch.zeros(2), outline.encoder.cache(condition))
    torch.testing.assert_close(a * valid, b * valid, rtol=1e-4, atol=1e-5)
    assert torch.count_nonzero(b[:, :, :8, :8]) == 0
    assert torch.count_nonzero(a[:, :, :8, :8]) > 0


def test_a_wafer_without_a_valid_pixel_gives_finite_output_and_gradient():
    student = woken(Student("T/8", 16))
    valid = wafer_valid(2)
    valid[0] = 0
    visible = torch.arange(30).expand(2, -1)
    out, _ = student(
        torch.randn(2, 2, 64, 64), valid, torch.zeros(2), student.encoder.cache(made_condition(2)), visible
    )
    out.square().mean().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
