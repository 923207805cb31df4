"""Attention against the textbook formula in float64, in both of its ways."""

import pytest
import torch

from ikddit.networks import blocks


def textbook(q, k, v, mask):
    scores = torch.einsum("bhnc,bhmc->bhnm", q, k) / q.shape[-1] ** 0.5
    weights = scores.exp() * (1.0 if mask is None else mask)
    return torch.einsum("bhnm,bhmc->bhnc", weights / weights.sum(-1, keepdim=True), v)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_and_its_gradient_are_the_textbooks(plain, masked, monkeypatch):
    if not plain:
        monkeypatch.setattr(blocks, "PLAIN_PAIRS", 0)
    g = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 3, n, 16, generator=g).bfloat16() for n in (12, 9, 9)]
    mask = (torch.arange(9) < 6).view(1, 1, 1, 9).expand(2, -1, -1, -1) if masked else None
    ours = [x.clone().requires_grad_() for x in made]
    peer = [x.double().requires_grad_() for x in made]
    weight = torch.randn(2, 3, 12, 16, generator=g)
    out, expected = blocks.attend(*ours, mask), textbook(*peer, mask)
    (out.float() * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)
    for a, b in zip(ours, peer, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=0.05, atol=0.05)
    if masked:
        assert not ours[1].grad[:, :, 6:].any()
