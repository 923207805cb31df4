"""The size table: one list of names, parameters in closed form, FLOPs by hand."""

import math
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from ikddit.cli import app
from ikddit.errors import ParamsError
from ikddit.networks.blocks import Attention
from ikddit.networks.complexity import PAPER, measure, table_row
from ikddit.networks.sizes import SIZES
from ikddit.networks.student import Student
from ikddit.params import ModelName, parse_params


def test_params_accept_exactly_the_names_of_the_table():
    assert list(SIZES) == list(get_args(ModelName))
    for name in SIZES:
        assert parse_params({"model": name}).model == name
    with pytest.raises(ParamsError, match="model"):
        parse_params({"model": "S/16"})


def test_every_size_tiles_the_map_and_splits_into_heads():
    for name, size in SIZES.items():
        assert size.side * size.patch == 64, name
        assert size.width % size.heads == 0, name
        assert name.endswith(f"/{size.patch}")


def closed_form(width: int, heads: int, dense: int, deep: int, decoder: int, patch: int, context: int) -> int:
    """Parameters of a student, counted on paper."""

    def linear(a: int, b: int) -> int:
        return a * b + b

    head = width // heads
    attention = linear(width, width) + linear(width, 2 * width) + linear(width, width) + 2 * head
    hidden = 8 * math.ceil(width / 3)
    mlp = linear(width, 2 * hidden) + linear(hidden, width)
    block = attention + mlp + linear(width, 6 * width)
    cross = linear(width, width) + linear(context, 2 * width) + linear(width, width) + 2 * head
    cross += width + width  # its norm and its gate
    ends = linear(3 * patch**2, width) + linear(64, width) + linear(width, width) + linear(3 * context, width)
    ends += width + linear(2 * width, width) + linear(width, 2 * width) + linear(width, 2 * patch**2)
    return (dense + deep + decoder) * block + deep * cross + ends


@pytest.mark.parametrize("name", ["T/8", "S/4", "XL/2"])
def test_parameters_agree_with_the_closed_form(name):
    size = SIZES[name]
    expected = closed_form(size.width, size.heads, size.dense, size.deep, size.decoder, size.patch, 128)
    assert measure(name).parameters == expected


def test_meta_count_is_that_of_the_real_student():
    assert measure("T/8", context_dim=16).parameters == sum(
        p.numel() for p in Student("T/8", 16).parameters()
    )


def test_attention_flops_are_those_counted_by_hand():
    batch, tokens, context, width, heads, narrow = 2, 6, 5, 32, 4, 16
    attention = Attention(width, heads, narrow).to("meta")
    x, c = (
        torch.empty(batch, tokens, width, device="meta"),
        torch.empty(batch, context, narrow, device="meta"),
    )
    with FlopCounterMode(display=False) as counter:
        attention(x, attention.key_value(c))
    projections = 2 * batch * (2 * tokens * width * width + context * narrow * 2 * width)
    products = 2 * (2 * batch * tokens * context * width)
    assert counter.get_total_flops() == projections + products


def test_flops_of_a_size_are_those_counted_by_hand():
    size, n, m = SIZES["T/8"], 60, 66
    d, hidden = size.width, 8 * math.ceil(size.width / 3)

    def block(tokens: int, cross: bool) -> int:
        own = tokens * (4 * d * d + 3 * d * hidden) + 2 * tokens * tokens * d + 6 * d * d
        return own + (2 * tokens * d * d + 2 * tokens * m * d if cross else 0)

    def macs(visible: int) -> int:
        embed = 64 * 3 * 64 * d + 64 * d + d * d  # the convolution runs on the square grid
        head = n * (2 * d * d + d * 2 * 64) + 2 * d * d
        return embed + block(n, False) + 4 * block(visible, True) + block(n, False) + head

    measured = measure("T/8")
    assert measured.visible == 30
    assert measured.flops == 2 * macs(60)
    assert measured.flops_masked == 2 * macs(30)


def test_s_and_xl_are_near_the_papers_sizes():
    for paper in PAPER.values():
        ours = measure(paper.like, outline="square")
        assert ours.tokens == 256
        assert abs(ours.parameters / paper.parameters - 1) < 0.06
        assert abs(ours.flops / 2e9 / paper.gflops - 1) < 0.08


def test_documented_table_is_the_measured_one(request):
    documented = (request.config.rootpath / "docs" / "model.md").read_text(encoding="utf-8")
    for name in ("T/8", "S/4", "L/8"):
        assert "| " + " | ".join(table_row(measure(name))) + " |" in documented


def test_sizes_command_prints_the_measured_row():
    done = CliRunner().invoke(app, ["sizes", "T/8", "--mask-ratio", "0.75", "--markdown"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[2:] == ["| " + " | ".join(table_row(measure("T/8", 0.75))) + " |"]
    assert measure("T/8", 0.75).flops_masked < measure("T/8", 0.5).flops_masked
    shown = CliRunner().invoke(app, ["sizes", "S/4"])
    assert "19.4 M" in shown.output
