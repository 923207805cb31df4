"""`embed.contrastive: false`: encoders start at random and learn with the student."""

import numpy as np
import pytest
import torch
from made_split import simulated

from ikddit.diffusion.model import ModelConfig, OverlayModel
from ikddit.embedding.conditions import gather_maps
from ikddit.embedding.fit import embedding_config, fit_embedding
from ikddit.networks.mean import MeanConfig
from ikddit.params import Params, parse_params
from ikddit.training.batch import LearningConditions, TrainingData, draw_batch
from ikddit.training.checkpoint import CheckpointFile
from ikddit.training.loop import Trainer

SIGMA_NM = 2.0


def settings(steps: int) -> Params:
    train = {"steps": steps, "batch": 4, "precision": "fp32", "warmup_steps": 2, "checkpoint_every": 10}
    return parse_params({"embed": {"contrastive": False, "dim": 16, "steps": 3, "batch": 16}, "train": train})


def made(steps: int = 12) -> tuple[Trainer, TrainingData]:
    split, vocabularies, _ = simulated(2)
    params = settings(steps)
    config = embedding_config(vocabularies, split, params.embed)
    embedding = fit_embedding(config, split, vocabularies, SIGMA_NM, params.embed, 0)
    mean = MeanConfig("none", config.id_sizes, config.log_channels, config.templates, 5, 5, 0, (), 4.6875)
    maps, valid = gather_maps(split, slice(None), SIGMA_NM)
    torch.manual_seed(0)
    model = OverlayModel(ModelConfig("T/8", config, mean, SIGMA_NM, 1.0, 0, 0.02, 20.0, 0.5, 32, "fp32"))
    model.embedding.load_state_dict(embedding.state_dict())
    trainer = Trainer(model, params, torch.device("cpu"))
    return trainer, TrainingData(maps, valid, LearningConditions(split, SIGMA_NM, model.embedding))


def test_nothing_is_pre_trained():
    split, vocabularies, _ = simulated(2)
    params = settings(1).embed
    config = embedding_config(vocabularies, split, params)
    one, other = (
        fit_embedding(config, split, vocabularies, SIGMA_NM, params.model_copy(update={"steps": n}), 0)
        for n in (1, 5)
    )
    assert not config.contrastive
    same = {name: torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items()}
    assert all(same.values())
    # what is known of the templates is not learnt: it must be there all the same
    assert one.logs.template_words.any()


def test_conditions_are_those_of_the_encoders():
    trainer, data = made()
    batch = draw_batch(data, 0, trainer.params, 60)
    rows = np.sort(np.random.default_rng([0, 0]).choice(len(data.residual), 4, False))
    expected = data.condition[torch.from_numpy(rows)]
    kept = ~(batch.condition.pooled == 0).all(1)  # rows whose condition was dropped are zero
    assert kept.any()
    assert torch.equal(batch.condition.pooled[kept], expected.pooled[kept])
    assert batch.condition.tokens.requires_grad


def test_encoders_and_student_learn_and_the_average_is_served():
    trainer, data = made()
    before = {name: value.clone() for name, value in trainer.model.embedding.state_dict().items()}
    student = trainer.student.encoder.pooled.weight.clone()
    trainer.run(data)
    after = trainer.model.embedding.state_dict()
    for name in ("maps.patch", "logs.channels.weight", "ids.field", "project.map.weight"):
        assert not torch.equal(before[name], after[name]), name
        assert not torch.equal(trainer.average_encoders.state_dict()[name], after[name]), name
    assert torch.equal(before["logs.template_words"], after["logs.template_words"])
    assert not torch.equal(student, trainer.student.encoder.pooled.weight)


def test_pretrained_encoders_are_left_alone():
    trainer, data = made()
    config = trainer.model.config
    frozen = type(config)(
        **(
            vars(config)
            | {"embedding": type(config.embedding)(**(vars(config.embedding) | {"contrastive": True}))}
        )
    )
    model = OverlayModel(frozen)
    before = {name: value.clone() for name, value in model.embedding.state_dict().items()}
    with torch.no_grad():
        tokens = data.condition[torch.arange(len(data.residual))]
    Trainer(model, settings(5), torch.device("cpu")).run(TrainingData(data.residual, data.valid, tokens))
    assert all(torch.equal(before[name], value) for name, value in model.embedding.state_dict().items())


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(tmp_path):
    trainer, data = made()
    whole = trainer.run(data)
    file = CheckpointFile(tmp_path / "state.pt")
    first, data = made()
    while first.step < 10:
        first.train_step(data)
    first.rows = whole[:1]
    file.save(first.state())
    second, data = made()
    assert second.run(data, file) == pytest.approx(np.array(whole), nan_ok=True, abs=0)
    assert second.resumed
