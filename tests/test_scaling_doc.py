"""docs/scaling.md: its blocks compute what they say, and its table holds what they computed."""

import doctest
import re
from pathlib import Path

import torch

from ikddit.embedding.encoders import ConditionTokens
from ikddit.training.batch import TrainingData

ROOT = Path(__file__).parents[1]
DOC = ROOT / "docs" / "scaling.md"
TEXT = DOC.read_text(encoding="utf-8")


def test_blocks_print_what_they_say() -> None:
    failed, tried = doctest.testfile(str(DOC), module_relative=False)
    assert (failed, tried > 5) == (0, True)


def test_table_holds_what_the_block_computed() -> None:
    computed = re.findall(r"^([\d,]+) \| ([\d,. |]+)$", TEXT, re.MULTILINE)
    rows = dict(re.findall(r"^\| ([\d,]+)(?: \([^|]*\))? \| (.*) \|$", TEXT, re.MULTILINE))
    assert len(computed) == 5
    for wafers, figures in computed:
        raw, records, prepared, _, validate, prepare, training, epoch_h = figures.split(" | ")
        disk, _, memory, data, epoch = rows[wafers].split(" | ")
        for shown, exact in zip(disk.split(", "), (raw, records, prepared), strict=True):
            assert abs(float(shown.replace(",", "")) - float(exact.replace(",", ""))) <= 0.51, wafers
        for shown, exact in zip(memory.split(", "), (validate, prepare), strict=True):
            assert abs(float(shown) - float(exact)) <= 0.51, wafers
        assert abs(float(data.replace(",", "")) - float(training.replace(",", ""))) <= 0.51
        if epoch.endswith(" h"):
            assert abs(float(epoch[:-2]) - float(epoch_h)) <= 0.51


def test_a_training_wafer_weighs_what_the_page_says() -> None:
    data = TrainingData(
        torch.zeros(3, 2, 64, 64, dtype=torch.float16),
        torch.zeros(3, 1, 64, 64, dtype=torch.uint8),
        ConditionTokens(
            torch.zeros(3, 66, 128, dtype=torch.float16),
            torch.zeros(3, 66, dtype=torch.bool),
            torch.zeros(3, 3 * 128, dtype=torch.float16),
        ),
    )
    assert isinstance(data.condition, ConditionTokens)
    tensors = (data.residual, data.valid, data.condition.tokens, data.condition.pad, data.condition.pooled)
    assert f"\n{sum(t.numel() * t.element_size() for t in tensors) // 3}\n" in TEXT
