"""The peers are what their papers say, or a ratio to them would mean nothing."""

from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from common import SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, made_data, training_params, usable_pixels
from peers import MAE_WEIGHT, DiT, MaskDiT, PeerBlock, PeerTrainer, maskdit_loss, sample_peer

from ikddit.diffusion.edm import Preconditioning
from ikddit.networks.masking import complement
from ikddit.networks.sizes import SIZES
from ikddit.networks.student import Student
from ikddit.training.batch import draw_batch

DIM = 128
BATCH = 4
MODELS = ("T/8", "T/4", "S/8")
SomePeer = TypeVar("SomePeer", bound=DiT | MaskDiT)


def inputs(batch: int = BATCH, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Noisy map, validity, noise level and pooled condition."""
    g = torch.Generator().manual_seed(seed)
    valid = usable_pixels().expand(batch, -1, -1, -1)
    x = torch.randn(batch, 2, 64, 64, generator=g)
    return x, valid, torch.randn(batch, generator=g), torch.randn(batch, 3 * DIM, generator=g)


def woken(peer: SomePeer) -> SomePeer:
    """The peer with every zero-initialised layer set, so that every path reaches the output."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in peer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    peer.eval()
    return peer


def some_visible(peer: DiT | MaskDiT, batch: int = BATCH) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    order = torch.rand(batch, peer.tokens, generator=g).argsort(1)
    return order[:, : peer.tokens // 2].sort(1).values


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", [DiT, MaskDiT])
def test_takes_the_students_tokens_and_gives_a_map(kind: type[DiT | MaskDiT], model: str) -> None:
    peer, student = woken(kind(model, DIM)), Student(model, DIM)
    assert peer.tokens == student.encoder.tokens
    assert peer.size is student.encoder.size
    out = peer(*inputs())
    assert out.shape == (BATCH, 2, 64, 64)
    covered = peer.pixels_of(torch.arange(peer.tokens).expand(BATCH, -1)) > 0
    assert not out.masked_select(~covered).any()
    assert out.masked_select(covered).all()


def test_square_outline_keeps_every_patch() -> None:
    peer = woken(DiT("T/8", DIM, "square"))
    assert peer.tokens == 64
    assert bool(peer(*inputs()).all())


@pytest.mark.parametrize("kind", [DiT, MaskDiT])
def test_every_block_is_the_identity_at_initialisation_and_the_output_is_zero(
    kind: type[DiT | MaskDiT],
) -> None:
    torch.manual_seed(0)
    peer = kind("T/8", DIM)
    tokens, condition = peer.stem(*inputs())
    for block in peer.modules():
        if isinstance(block, PeerBlock):
            x = torch.randn(BATCH, 5, block.norm1.normalized_shape[0])
            assert torch.equal(block(x, condition), x)
    assert torch.equal(peer.encode(*inputs())[0], tokens)
    assert not peer(*inputs()).any()


def test_blocks_do_something_once_their_gates_are_open() -> None:
    peer = woken(DiT("T/8", DIM))
    tokens, _ = peer.stem(*inputs())
    assert not torch.allclose(peer.encode(*inputs())[0], tokens, atol=0.1)


@pytest.mark.parametrize("model", MODELS)
def test_dit_has_the_parameters_of_the_formula(model: str) -> None:
    size = SIZES[model]
    w, p, depth = size.width, size.patch, size.dense + size.deep + size.decoder
    stem = (3 * p**2 + 1) * w + (256 * w + w) + (w * w + w) + (3 * DIM + 1) * w
    block = (4 * w * w + 4 * w) + (8 * w * w + 5 * w) + 6 * (w * w + w)
    last = 2 * (w * w + w) + (w + 1) * 2 * p**2
    assert parameters(DiT(model, DIM)) == stem + depth * block + last


@pytest.mark.parametrize("model", MODELS)
def test_maskdit_has_the_parameters_of_the_formula(model: str) -> None:
    size = SIZES[model]
    w, p, depth = size.width, size.patch, size.dense + size.deep + size.decoder
    d, blocks = w // 2, 2  # 6 blocks x 8/28
    encoder = parameters(DiT(model, DIM)) - 2 * (w * w + w) - (w + 1) * 2 * p**2
    narrow = 2 * (w * w + w) + (w + 1) * d
    block = (4 * d * d + 4 * d) + (8 * d * d + 5 * d) + 6 * d * (w + 1)
    last = 2 * d * (w + 1) + (d + 1) * 2 * p**2
    assert depth == 6
    assert parameters(MaskDiT(model, DIM)) == encoder + narrow + d + blocks * block + last


def parameters(peer: DiT | MaskDiT) -> int:
    return sum(p.numel() for p in peer.parameters())


def test_maskdit_encoder_sees_only_visible_tokens() -> None:
    peer = woken(MaskDiT("T/8", DIM))
    x, valid, c_noise, pooled = inputs()
    visible = some_visible(peer)
    hidden_pixels = peer.pixels_of(complement(visible, peer.tokens)).expand_as(x)
    changed = x + 10 * hidden_pixels
    before, _ = peer.encode(x, valid, c_noise, pooled, visible)
    after, _ = peer.encode(changed, valid, c_noise, pooled, visible)
    assert before.shape == (BATCH, 30, 128)
    assert torch.equal(before, after)
    assert torch.equal(
        peer(x, valid, c_noise, pooled, visible), peer(changed, valid, c_noise, pooled, visible)
    )
    # the same change reaches every output once nothing is masked
    assert not torch.allclose(peer(x, valid, c_noise, pooled), peer(changed, valid, c_noise, pooled))


def test_maskdit_decoder_tells_hidden_places_apart() -> None:
    peer = woken(MaskDiT("T/8", DIM))
    visible = some_visible(peer)
    patches = peer.to_patches(peer(*inputs(), visible))
    hidden = patches[0, complement(visible, peer.tokens)[0]]
    assert bool(torch.pdist(hidden).min() > 1e-4)


def test_patches_and_maps_undo_each_other() -> None:
    peer = DiT("T/4", DIM)
    patches = torch.randn(2, peer.tokens, 2 * 16)
    assert torch.equal(peer.to_patches(peer.to_map(patches)), patches)
    # a patch is a square of pixels: channel by channel, row by row
    maps = torch.arange(2.0 * 64 * 64).view(1, 2, 64, 64)
    row, col = divmod(int(peer.stem.place[5]), 16)
    square = maps[0, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
    assert torch.equal(peer.to_patches(maps)[0, 5], square.flatten())


def test_maskdit_loss_is_of_visible_patches_plus_a_tenth_of_the_hidden_ones() -> None:
    peer = woken(MaskDiT("T/8", DIM))
    params = training_params(BATCH, "fp32")
    batch = draw_batch(made_data(BATCH), 0, params, peer.tokens)
    assert batch.visible is not None
    precondition = Preconditioning(SIGMA_DATA)
    noisy = (batch.residual + batch.sigma.view(-1, 1, 1, 1) * batch.noise) * batch.valid
    c_skip, c_out, c_in, c_noise = precondition.coefficients(batch.sigma.view(-1, 1, 1, 1))
    network = peer(c_in * noisy, batch.valid, c_noise.flatten(), batch.condition.pooled, batch.visible)
    out = c_skip * noisy + c_out * network
    wanted = 0.0
    for i in range(BATCH):
        seen = torch.zeros(peer.tokens, dtype=torch.bool)
        seen[batch.visible[i]] = True
        valid = peer.to_patches(batch.valid[i : i + 1].expand(-1, 2, -1, -1))[0]
        error = peer.to_patches((out - batch.residual)[i : i + 1])[0].square() * valid
        dsm = error[seen].sum() / valid[seen].sum() / c_out[i].squeeze() ** 2
        target = peer.to_patches(noisy[i : i + 1])[0][~seen]
        spread = (target.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        target = (target - target.mean(1, keepdim=True)) / spread
        mae = (peer.to_patches(out[i : i + 1])[0][~seen] - target).square().mean()
        wanted += float((dsm + MAE_WEIGHT * mae).detach()) / BATCH
    assert float(maskdit_loss(peer, precondition, batch).detach()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("kind", [DiT, MaskDiT])
def test_overfits_one_small_batch(kind: type[DiT | MaskDiT]) -> None:
    torch.manual_seed(0)
    trainer = PeerTrainer(
        kind("T/8", DIM), training_params(BATCH, "fp32"), SIGMA_DATA, torch.device("cpu"), 2e-3
    )
    batch = draw_batch(made_data(BATCH), 0, trainer.params, trainer.network.tokens)
    batch = replace(batch, sigma=torch.full((BATCH,), 1.0))
    losses = [float(trainer.descend(batch)) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_step_moves_weights_and_their_average() -> None:
    torch.manual_seed(0)
    trainer = PeerTrainer(DiT("T/8", DIM), training_params(2, "bf16"), SIGMA_DATA, torch.device("cpu"))
    before = [p.clone() for p in trainer.network.parameters()]
    data = made_data(8)
    for _ in range(3):
        assert bool(torch.isfinite(trainer.train_step(data)))
    assert trainer.step == 3
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True)]
    assert all(moved)
    followed = [not torch.equal(a, b) for a, b in zip(before, trainer.average.parameters(), strict=True)]
    assert any(followed)


@pytest.mark.parametrize("kind", [DiT, MaskDiT])
def test_sampling_shows_every_token_to_every_block(kind: type[DiT | MaskDiT]) -> None:
    peer = woken(kind("T/8", DIM))
    calls: list[int] = []
    for block in peer.modules():
        if isinstance(block, PeerBlock):
            block.register_forward_hook(lambda module, args, out: calls.append(out.shape[1]))
    noise, _, _, pooled = inputs()
    usable = usable_pixels()
    maps = sample_peer(
        peer, Preconditioning(SIGMA_DATA), noise, usable, pooled, 3, (SIGMA_MIN, SIGMA_MAX), bf16=False
    )
    assert maps.shape == noise.shape
    assert not maps.masked_select((usable == 0).expand_as(maps)).any()
    blocks = {"DiT": 6, "MaskDiT": 8}[kind.__name__]
    assert calls == [peer.tokens] * (3 * blocks)
