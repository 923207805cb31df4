"""The KL autoencoder: 256x256 maps to 64x64 latents and back, trained, saved, diffused by the same student."""

import pytest
import torch
from made_students import made_condition

from ikddit.errors import ModelError
from ikddit.networks.codec import Codec, CodecConfig, codec_loss, fit_codec
from ikddit.networks.student import Student

SMALL = CodecConfig(widths=(8, 8, 8), groups=4)


def made_maps(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth maps, unit variance, a round wafer."""
    g = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, 256)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    basis = torch.stack([x, y, x * y, x**2 - y**2, torch.sin(3 * x), torch.cos(3 * y)])
    maps = torch.einsum("nck,khw->nchw", torch.randn(n, 2, 6, generator=g), basis)
    valid = (x**2 + y**2 < 0.96).float().expand(n, 1, -1, -1)
    return maps / maps.std(), valid.clone()


@pytest.fixture(scope="module")
def fitted():
    maps, valid = made_maps(2)
    return fit_codec(maps, valid, SMALL, steps=12, batch=2, learning_rate=1e-2, seed=1)


def test_reconstruction_improves(fitted):
    codec, errors = fitted
    assert len(errors) == 12
    assert sum(errors[-3:]) < 0.5 * sum(errors[:3])
    maps, valid = made_maps(2)
    with torch.no_grad():
        again = codec.decode(codec.encode(maps, valid))
    error = ((again - maps).square() * valid).sum() / (2 * valid.sum())
    assert float(error) < 0.6 * float((maps.square() * valid).sum() / (2 * valid.sum()))


def test_latents_have_the_students_shape_and_unit_statistics(fitted):
    codec, _ = fitted
    maps, valid = made_maps(2)
    with torch.no_grad():
        latents = codec.encode(maps, valid)
        assert latents.shape == (2, 4, 64, 64)
        assert codec.decode(latents).shape == maps.shape
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    student = Student("T/8", 16, channels=4, outline="square")
    out, _ = student(
        latents[:2], torch.ones(2, 1, 64, 64), torch.zeros(2), student.encoder.cache(made_condition(2))
    )
    assert out.shape == latents[:2].shape


def test_unmeasured_pixels_do_not_reach_the_latents(fitted):
    codec, _ = fitted
    maps, valid = made_maps(1)
    changed = torch.where(valid > 0, maps, torch.full_like(maps, 77.0))
    with torch.no_grad():
        assert torch.equal(codec.encode(maps, valid), codec.encode(changed, valid))


def test_loss_is_masked_squared_error_plus_the_gaussian_kl():
    torch.manual_seed(0)
    codec = Codec(SMALL).eval()
    maps, valid = made_maps(1)
    noise = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        loss, error = codec_loss(codec, maps, valid, noise, 0.5)
        mean, log_variance = codec.posterior(maps, valid)
        spread = (log_variance / 2).exp()
        out = codec.decode(mean + spread * noise)  # shift 0 and scale 1 until measured
    measured = valid[0, 0] > 0
    by_hand = (out - maps)[0, :, measured].square().mean()
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, spread), torch.distributions.Normal(0.0, 1.0)
    ).mean()
    torch.testing.assert_close(error, by_hand)
    torch.testing.assert_close(loss, by_hand + 0.5 * kl)


def test_same_seed_same_codec():
    maps, valid = made_maps(2)
    a, first = fit_codec(maps, valid, SMALL, steps=2, batch=1, seed=3)
    b, second = fit_codec(maps, valid, SMALL, steps=2, batch=1, seed=3)
    assert first == second
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_folder_round_trip_without_pickle_and_damage(fitted, tmp_path):
    codec, _ = fitted
    codec.save(tmp_path / "codec")
    assert sorted(p.name for p in (tmp_path / "codec").iterdir()) == ["config.json", "model.safetensors"]
    again = Codec.load(tmp_path / "codec")
    assert again.config == SMALL
    maps, valid = made_maps(1)
    with torch.no_grad():
        assert torch.equal(again.encode(maps, valid), codec.encode(maps, valid))
    (tmp_path / "codec" / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ModelError, match="not a usable codec"):
        Codec.load(tmp_path / "codec")
    with pytest.raises(ModelError, match="not a usable codec"):
        Codec.load(tmp_path / "nowhere")


def test_another_size_is_refused_with_the_way_out():
    with pytest.raises(ModelError, match=r"expected \(2, 256, 256\); resample the maps, or use codec: none"):
        Codec(SMALL).encode(torch.zeros(1, 2, 64, 64), torch.ones(1, 1, 64, 64))
