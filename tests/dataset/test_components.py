"""Scores of maps with gaps, against least squares on the measured pixels alone (numpy)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikddit.dataset.components import component_scores

PIXELS, COMPONENTS = 600, 4
BASIS = torch.linalg.qr(torch.randn(PIXELS, COMPONENTS, generator=torch.Generator().manual_seed(0))).Q.T


def made(
    wafers: int, share: float, seed: int, noise: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, their maps with `noise`, and masks with gaps at random."""
    g = torch.Generator().manual_seed(seed)
    scores = 10 * torch.randn(wafers, COMPONENTS, generator=g)
    maps = scores @ BASIS + noise * torch.randn(wafers, PIXELS, generator=g)
    return scores, maps, (torch.rand(wafers, PIXELS, generator=g) >= share).float()


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.0, 0.5), seed=st.integers(0, 1000))
def test_scores_are_those_of_least_squares_on_the_measured_pixels(share: float, seed: int) -> None:
    _, maps, valid = made(3, share, seed, noise=0.3)
    found = component_scores(maps, valid, BASIS)
    for row in range(3):
        known = valid[row].bool().numpy()
        peer = np.linalg.lstsq(BASIS.numpy()[:, known].T, maps[row].numpy()[known], rcond=None)[0]
        # 1e-3 of the projection's own error, a quarter more than the share where the gaps lie unluckily
        np.testing.assert_allclose(found[row].numpy(), peer, atol=0.02 * float(np.abs(peer).max()) + 1e-4)


@pytest.mark.parametrize("share", [0.003, 0.2, 0.5])
def test_maps_of_the_components_alone_give_their_scores_back(share: float) -> None:
    scores, maps, valid = made(20, share, 1)
    lost = float((maps * valid @ BASIS.T - scores).square().mean().sqrt())
    left = float((component_scores(maps, valid, BASIS) - scores).square().mean().sqrt())
    assert left < 0.02 * lost


def test_whole_maps_are_projected_and_empty_ones_have_no_scores() -> None:
    _, maps, valid = made(2, 0.0, 2)
    assert torch.equal(component_scores(maps, valid, BASIS), maps @ BASIS.T)
    assert not component_scores(maps, torch.zeros_like(maps), BASIS).any()
    assert component_scores(maps[:0], valid[:0], BASIS).shape == (0, COMPONENTS)


def test_what_lies_under_a_gap_and_beside_a_wafer_changes_nothing() -> None:
    _, maps, valid = made(4, 0.3, 3)
    valid[1:] *= made(3, 0.5, 4)[2]  # wafers that need more rounds
    wild = torch.where(valid.bool(), maps, torch.full_like(maps, 1e6))
    together = component_scores(wild, valid, BASIS)
    torch.testing.assert_close(
        together[:1], component_scores(maps[:1], valid[:1], BASIS), rtol=1e-5, atol=1e-5
    )


def test_pixels_that_no_component_has_are_no_gaps() -> None:
    basis = BASIS.clone()
    basis[:, 300:] = 0
    basis = torch.linalg.qr(basis.T).Q.T.contiguous()
    basis[:, 300:] = 0  # rounding
    maps, valid = torch.randn(1, COMPONENTS) @ basis, torch.ones(1, PIXELS)
    valid[:, 300:] = 0
    assert torch.equal(component_scores(maps, valid, basis), (maps * valid) @ basis.T)
