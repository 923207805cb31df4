"""Inception features and the distance on them are pytorch-fid's own; spaces of broken weights are absent."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from evaluation_fakes import GRID
from fid_fakes import made_maps, made_state, seen_by_pytorch_fid

from ikddit.errors import ModelError
from ikddit.evaluation.fid.inception import InceptionFeatures, missing_spaces
from ikddit.evaluation.fid.rendering import render
from ikddit.evaluation.fid.weights import Weights, read_weights
from ikddit.evaluation.scores import frechet_distance
from ikddit.mpom.encoding import encode_png

COUNT = 8
CLI = (
    "import sys; from ikddit.vision import make_torchvision_importable as make; make()\n"
    "import pytorch_fid.inception as inception; inception.FID_WEIGHTS_URL = sys.argv[1]\n"
    "import runpy; sys.argv[:2] = ['pytorch_fid']; runpy.run_module('pytorch_fid', run_name='__main__')"
)


@pytest.fixture(scope="module")
def state():
    return made_state()


@pytest.fixture(scope="module")
def weights_file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "made.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def image_sets(tmp_path_factory):
    """Two sets of maps with their masks, and folders of the PNGs they are rendered to."""
    sets = []
    for k in range(2):
        maps = made_maps(COUNT, k, shift_nm=3.0 * k).astype(np.float32)
        valid = np.stack([GRID.usable.astype(np.uint8)] * COUNT)
        folder = tmp_path_factory.mktemp(f"png{k}")
        for i, image in enumerate(render(maps, valid, 16.0)):
            (folder / f"{i:03d}.png").write_bytes(encode_png(image))
        sets.append((maps, valid, folder))
    return sets


@pytest.fixture(scope="module")
def features(weights_file, image_sets):
    network = InceptionFeatures(read_weights(weights_file), [64, 192], 16.0)
    return [network(maps, valid) for maps, valid, _ in image_sets]


def test_fid_is_that_of_pytorch_fids_command_line(weights_file, image_sets, features, tmp_path):
    folders = [str(folder) for _, _, folder in image_sets]
    command = [sys.executable, "-W", "ignore", "-c", CLI, weights_file.as_uri(), *folders]
    done = subprocess.run(
        [*command, "--dims", "192", "--num-workers", "0", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TORCH_HOME": str(tmp_path)},
    )
    expected = float(done.stdout.split("FID:")[1])
    found = frechet_distance(*(f["inception_192"] for f in features))
    assert expected > 0.1
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fid_is_that_of_pytorch_fids_function(weights_file, image_sets, features, tmp_path, monkeypatch):
    from pytorch_fid.fid_score import calculate_fid_given_paths

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with seen_by_pytorch_fid(weights_file):
        folders = [str(folder) for _, _, folder in image_sets]
        expected = calculate_fid_given_paths(folders, COUNT, "cpu", 64, num_workers=0)
    found = frechet_distance(*(f["inception_64"] for f in features))
    assert expected > 0.1
    assert found == pytest.approx(expected, abs=1e-4)


def test_one_pass_gives_every_depth_spatial_features_and_logits(state):
    from pytorch_fid.inception import InceptionV3

    network = InceptionFeatures(Weights(state, "made", ""), [64, 192, 768, 2048], 16.0)
    maps, valid = made_maps(1, 0).astype(np.float32), GRID.usable[None].astype(np.uint8)
    found = network(maps, valid)
    widths = {space: values.shape[1] for space, values in found.items()}
    assert widths == {
        "inception_64": 64, "inception_192": 192, "inception_768": 768, "inception_2048": 2048,
        "inception_spatial": 7 * 17 * 17, "inception_logits": 1008,
    }  # fmt: skip
    blocks: InceptionV3 = network._network
    image = torch.from_numpy(render(maps, valid, 16.0)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        x = 2 * torch.nn.functional.interpolate(image, (299, 299), mode="bilinear", align_corners=False) - 1
        for part in (blocks.blocks[0], blocks.blocks[1], blocks.blocks[2][:6]):
            x = part(x)
        spatial = blocks.blocks[2][6].branch1x1(x)[:, :7].flatten(1)
    np.testing.assert_allclose(found["inception_spatial"], spatial, rtol=1e-4, atol=1e-5)
    logits = found["inception_2048"] @ state["fc.weight"].numpy().T
    np.testing.assert_allclose(found["inception_logits"], logits, rtol=1e-4, atol=1e-4)


def broken(state, layer):
    name = next(name for name in state if name.startswith(f"{layer}."))
    return {**state, name: torch.full_like(state[name], torch.nan)}


@pytest.mark.parametrize(
    ("layer", "absent"),
    [
        ("Conv2d_2a_3x3", {"64", "192", "768", "2048", "spatial", "logits"}),
        ("Conv2d_4a_3x3", {"192", "768", "2048", "spatial", "logits"}),
        ("Mixed_6d", {"768", "2048", "spatial", "logits"}),
        ("Mixed_6e", {"768", "2048", "logits"}),
        ("Mixed_7a", {"2048", "logits"}),
        ("fc", {"logits"}),
    ],
)
def test_spaces_behind_a_broken_layer_are_absent_with_the_reason(state, layer, absent):
    found = missing_spaces(broken(state, layer), [64, 192, 768, 2048])
    assert set(found) == {f"inception_{name}" for name in absent}
    assert set(found.values()) == {f"weights are not finite (NaN) in {layer}"}


def test_no_figure_is_computed_under_the_name_of_a_missing_depth(state):
    network = InceptionFeatures(Weights(broken(state, "Conv2d_3b_1x1"), "made", ""), [64, 2048], 16.0)
    assert network.spaces == ["inception_64"]
    found = network(made_maps(1, 0).astype(np.float32), GRID.usable[None].astype(np.uint8))
    assert list(found) == ["inception_64"]
    assert np.isfinite(found["inception_64"]).all()


def test_weights_broken_from_the_first_layer_give_nothing_and_do_not_fail(state):
    network = InceptionFeatures(Weights(broken(state, "Conv2d_1a_3x3"), "made", ""), [64], 16.0)
    assert network.spaces == []
    assert network(made_maps(1, 0).astype(np.float32), GRID.usable[None].astype(np.uint8)) == {}


def test_weights_of_another_network_are_refused(state):
    other = {name: value for name, value in state.items() if not name.startswith("Mixed_6a")}
    with pytest.raises(ModelError, match="not weights of the FID Inception network"):
        InceptionFeatures(Weights(other, "other.pth", ""), [64], 16.0)
