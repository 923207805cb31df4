"""The student with parts turned off: what then reaches the output, and what no longer does."""

import pytest
import torch
from made_students import made_condition, woken

from ikddit.networks.student import Student

VISIBLE = torch.arange(30, 60)[None]
"""The top half of the wafer is hidden; token 0, rows 0-7 and columns 8-15, with it."""


def change_at_token_0(student: Student, visible: torch.Tensor | None) -> torch.Tensor:
    """Change of the output (1, 2, 64, 64) when the pixels of token 0 change."""
    cache = student.encoder.cache(made_condition(1))
    x = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[:, :, :8, 8:16] += 1.0
    valid, noise = torch.ones(1, 1, 64, 64), torch.zeros(1)
    with torch.no_grad():
        return student(x, valid, noise, cache, visible)[0] - student(changed, valid, noise, cache, visible)[0]


def test_without_a_dense_path_nothing_depends_on_what_is_hidden():
    dense, bare = (woken(Student("T/8", 16, dense_path=on)) for on in (True, False))
    assert change_at_token_0(dense, VISIBLE)[:, :, :8, 8:16].abs().max() > 1e-3
    assert torch.count_nonzero(change_at_token_0(bare, VISIBLE)) == 0
    assert change_at_token_0(bare, None)[:, :, :8, 8:16].abs().max() > 1e-3  # unmasked, it sees everything


def test_hidden_tokens_without_a_dense_path_still_know_where_they_are():
    student = woken(Student("T/8", 16, dense_path=False))
    cache = student.encoder.cache(made_condition(1))
    with torch.no_grad():
        out, _ = student(torch.randn(1, 2, 64, 64), torch.ones(1, 1, 64, 64), torch.zeros(1), cache, VISIBLE)
    first, second = out[:, :, :8, 8:16], out[:, :, :8, 16:24]  # both hidden
    assert (first - second).abs().max() > 1e-3


def test_invalid_patches_stay_out_of_the_attention_without_a_dense_path():
    student = woken(Student("T/8", 16, dense_path=False))
    cache = student.encoder.cache(made_condition(1))
    x, valid = torch.randn(1, 2, 64, 64), torch.ones(1, 1, 64, 64)
    valid[:, :, 40:48, 24:32] = 0
    changed = x.clone()
    changed[:, :, 40:48, 24:32] += 1.0
    with torch.no_grad():
        one, _ = student(x, valid, torch.zeros(1), cache, VISIBLE)
        other, _ = student(changed, valid, torch.zeros(1), cache, VISIBLE)
    assert torch.equal(one, other)


def with_condition(student: Student, **changes: torch.Tensor) -> torch.Tensor:
    condition = made_condition(1)
    condition = type(condition)(**(vars(condition) | changes))
    x = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        cache = student.encoder.cache(condition)
        return student(x, torch.ones(1, 1, 64, 64), torch.zeros(1), cache, VISIBLE)[0]


@pytest.mark.parametrize("on", [True, False])
def test_tokens_of_the_condition_matter_through_cross_attention_only(on):
    student = woken(Student("T/8", 16, cross_attention=on))
    plain = with_condition(student)
    other_tokens = with_condition(student, tokens=torch.randn(1, 5, 16))
    assert bool((plain - other_tokens).abs().max() > 1e-3) is on
    other_pooled = with_condition(student, pooled=torch.randn(1, 48))
    assert (plain - other_pooled).abs().max() > 1e-3


def test_parts_turned_off_leave_the_names_of_the_rest():
    full, bare = Student("T/8", 16), Student("T/8", 16, dense_path=False)
    shapes = {name: value.shape for name, value in full.state_dict().items()}
    assert {name: value.shape for name, value in bare.state_dict().items()} == shapes
    without = Student("T/8", 16, cross_attention=False).state_dict()
    assert set(shapes) - set(without) == {name for name in shapes if ".cross." in name}
    assert set(without) <= set(shapes)


def test_samples_share_their_wafer_without_cross_attention():
    """Two samples of one wafer from one repeated cache are those of the wafer alone."""
    student = woken(Student("T/8", 16, cross_attention=False))
    x, valid = torch.randn(4, 2, 64, 64), torch.ones(4, 1, 64, 64)
    with torch.no_grad():
        cache = student.encoder.cache(made_condition(2))
        both, _ = student(x, valid, torch.zeros(4), cache.repeat_interleave(2))
        alone, _ = student(x[::2], valid[::2], torch.zeros(2), cache)
    assert torch.allclose(both[::2], alone, atol=1e-5)
