"""Models with parts turned off train, are saved, loaded and sampled; folders from before the switches load."""

import json

import pytest
import torch
from made_training import made_config, made_data

from ikddit.diffusion.model import OverlayModel
from ikddit.diffusion.plan import SamplingPlan
from ikddit.errors import ParamsError
from ikddit.params import parse_params
from ikddit.training.loop import CURVE_COLUMNS, Trainer

OFF = ({"dense_path": False}, {"cross_attention": False}, {"dense_path": False, "cross_attention": False})


def trained(**off: bool) -> Trainer:
    train = {"steps": 10, "batch": 4, "precision": "fp32", "warmup_steps": 2, "path_dropout": 0.0, **off}
    torch.manual_seed(0)
    trainer = Trainer(OverlayModel(made_config(**off)), parse_params({"train": train}), torch.device("cpu"))
    trainer.run(made_data())
    return trainer


@pytest.mark.parametrize("off", OFF)
def test_it_trains_and_comes_back_from_its_folder(off, tmp_path):
    trainer = trained(**off)
    row = dict(zip(CURVE_COLUMNS, trainer.rows[-1], strict=True))
    assert (row["gate"] > 0) is off.get(
        "cross_attention", True
    )  # without cross-attention there is none to open
    assert trainer.student.decoder.head.weight.any()
    trainer.model.save(tmp_path)
    again = OverlayModel.load(tmp_path)
    assert again.config == trainer.model.config
    data = made_data(4).condition
    tokens = data.float()
    noise = torch.randn(4, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    order = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(i)) for i in range(4)])
    plan = SamplingPlan(steps=6, inference="masked", mask_ratio=0.5)
    maps = []
    for model in (trainer.model.eval(), again):
        with torch.no_grad():
            cache = model.student.encoder.cache(tokens)
            maps.append(model.sample_residual(noise, cache, plan, order))
    assert torch.equal(*maps)
    assert maps[0].isfinite().all()


def test_a_folder_from_before_the_switches_loads_as_the_full_model(tmp_path):
    OverlayModel(made_config()).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("dense_path", "cross_attention"):
        assert config.pop(name) is True
    assert config["embedding"].pop("contrastive") is True
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert OverlayModel.load(tmp_path).config == made_config()


def test_path_dropout_without_a_dense_path_is_refused():
    with pytest.raises(ParamsError, match="dense_path: false needs path_dropout: 0"):
        parse_params({"train": {"dense_path": False}})
    assert not parse_params({"train": {"dense_path": False, "path_dropout": 0.0}}).train.dense_path
