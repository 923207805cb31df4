"""Sentence vectors: what is said when the model or its package is missing, and how an embedding uses them."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_split import simulated

from ikddit.embedding import encoders
from ikddit.embedding.conditions import gather_conditions
from ikddit.embedding.encoders import EmbeddingConfig, UnifiedEmbedding
from ikddit.embedding.fit import embedding_config, load_embedding, save_embedding
from ikddit.embedding.text import sentence_vectors
from ikddit.errors import ModelError
from ikddit.params import EmbedParams, parse_params


@pytest.mark.parametrize("path", [None, ""])
def test_no_path_configured(path):
    with pytest.raises(ModelError, match=r"embed\.minilm_path is empty.*log_encoder to words"):
        sentence_vectors(["a"], path)


def test_path_without_a_folder(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        sentence_vectors(["a"], str(tmp_path / "gone"))


def test_package_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelError, match="pip install sentence-transformers"):
        sentence_vectors(["a"], str(tmp_path))


def test_the_model_is_loaded_once(tmp_path, monkeypatch):
    """Plumbing only: the package is not installed with the others."""
    loaded: list[str] = []

    class Model:
        def __init__(self, path: str, **_: object) -> None:
            loaded.append(path)

        def encode(self, texts: list[str], **_: object) -> np.ndarray:
            return np.ones((len(texts), 3))

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Model))
    for texts in (["log"], ["a", "b"]):
        assert sentence_vectors(texts, str(tmp_path)).shape == (len(texts), 3)
    assert loaded == [str(tmp_path)]


def test_the_embedding_names_the_setting_before_it_trains():
    split, known, _ = simulated(20)
    with pytest.raises(ModelError, match=r"embed\.minilm_path"):
        embedding_config(known, split, EmbedParams(log_encoder="minilm"))
    assert parse_params({"embed": {"log_encoder": "minilm"}}).embed.minilm_path is None


def test_sentence_vectors_become_part_of_the_embedding(tmp_path, monkeypatch):
    """Plumbing only: random vectors in place of a model's; its folder serves without the model."""
    split, known, _ = simulated(20)
    asked: list[str] = []

    def random_vectors(texts, path):
        asked.extend(texts)
        return np.random.default_rng(0).normal(size=(len(texts), 12)).astype(np.float32)

    monkeypatch.setattr(encoders, "sentence_vectors", random_vectors)
    config = EmbeddingConfig(
        32, tuple(known.id_sizes), 128, known.template_size, 6, words=len(known.tokenizer), text_dim=12
    )
    torch.manual_seed(0)
    model = UnifiedEmbedding(config)
    model.logs.know(known, "a folder")
    assert asked == known.templates + known.tokenizer.words[2:]
    vectors = random_vectors(list(asked), "")
    vectors = (vectors - vectors.mean(0)) / vectors.std(0, ddof=1)
    kept = torch.cat([model.logs.template_text[2:], model.logs.word_text[2:]])
    assert np.allclose(kept, vectors, atol=1e-5)
    assert not model.logs.word_text[:2].any()
    save_embedding(model, tmp_path / "e")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    c = gather_conditions(split, slice(0, 8), 2.0)
    with torch.no_grad():
        assert torch.equal(load_embedding(tmp_path / "e")(c).pooled, model.eval()(c).pooled)
