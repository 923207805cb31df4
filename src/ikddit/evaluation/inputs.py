"""Wafers taken from a split, as they are, with an input withheld, or with another wafer's inputs."""

from typing import Literal

import numpy as np

from ikddit.dataset.arrow import PreparedSplit, fixed_list

Modality = Literal["prev_map", "logs", "ids"]
MODALITIES: tuple[Modality, ...] = ("prev_map", "logs", "ids")
MODALITY_COLUMNS: dict[Modality, tuple[str, ...]] = {
    "prev_map": ("prev_map", "prev_valid"),
    "logs": ("log_features", "line_templates", "line_values", "line_words"),
    "ids": ("ids",),
}
"""Columns of a prepared split that are 0 where a modality was not received."""


def take(split: PreparedSplit, rows: np.ndarray) -> PreparedSplit:
    """The wafers at `rows`, in that order, as a split in memory."""
    return PreparedSplit.from_table(split.table.take(rows).combine_chunks())


def without(split: PreparedSplit, modality: Modality) -> PreparedSplit:
    """The same wafers as if one modality had never been received."""
    blank: dict[str, np.ndarray] = {
        name: np.zeros_like(getattr(split, name)) for name in MODALITY_COLUMNS[modality]
    }
    if modality == "logs":
        blank["log_missing"] = np.ones_like(split.log_missing)
    table = split.table
    for name, values in blank.items():
        position, kind = table.schema.get_field_index(name), table.schema.field(name)
        table = table.set_column(position, kind, fixed_list(values, kind.type))
    return PreparedSplit.from_table(table)


def shuffled(split: PreparedSplit, seed: int) -> PreparedSplit:
    """Every wafer with the conditions of another one: a model that uses them must get much worse."""
    return take(split, np.random.default_rng([seed, 1]).permutation(len(split)))
