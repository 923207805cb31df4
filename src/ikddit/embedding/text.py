"""Sentence vectors of log lines from a local sentence-transformers model (`embed.log_encoder: minilm`).

The model describes the templates and words of train once, when the embedding is fitted; the vectors become part of
the embedding. Nothing is downloaded, and neither training nor serving needs the package.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from ikddit.dataset.vocabulary import PLACEHOLDER
from ikddit.errors import ModelError


@lru_cache(maxsize=1)
def _sentence_model(path: str) -> Any:
    """Load the model: once for the size of its vectors and for the vectors themselves."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(path, device="cpu", local_files_only=True)


def sentence_vectors(texts: Sequence[str], path: str | None) -> Float32[np.ndarray, "n D"]:
    """Unit vectors of log-line templates or words; `<num>` is read as the word "number".

    Args:
        texts: templates or single words.
        path: folder of a sentence-transformers model, such as all-MiniLM-L6-v2 (D = 384).

    Raises:
        ModelError: no folder is configured or there is none, the package is missing, or the model does not load.
    """
    way_out = "set embed.minilm_path to a sentence-transformers folder, or embed.log_encoder to words"
    if not path:
        raise ModelError(f"embed.log_encoder is minilm but embed.minilm_path is empty; {way_out}")
    if not Path(path).is_dir():
        raise ModelError(f"embed.minilm_path: {path}: no such folder; {way_out}")
    try:
        import sentence_transformers  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise ModelError(
            f"embed.log_encoder is minilm but sentence-transformers cannot be imported ({error}); "
            "`pip install sentence-transformers`, or set embed.log_encoder to words"
        ) from error
    try:
        model = _sentence_model(path)
        spoken = [re.sub(r"\s+", " ", text.replace(PLACEHOLDER, " number ")).strip() for text in texts]
        vectors = model.encode(spoken, normalize_embeddings=True, show_progress_bar=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"embed.minilm_path: {path}: not a sentence-transformers model ({error}); {way_out}"
        ) from error
    return np.asarray(vectors, dtype=np.float32)
