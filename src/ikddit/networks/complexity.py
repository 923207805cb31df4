"""Parameters and forward FLOPs of every size, measured on the meta device (no weights are made)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ikddit.errors import ParamsError
from ikddit.networks.masking import gather_tokens, scatter_tokens, visible_count
from ikddit.networks.outline import Outline
from ikddit.networks.sizes import SIZES
from ikddit.networks.student import ConditionCache, Student

CONTEXT_DIM = 128
CONTEXT_TOKENS = 66
"""Condition tokens of the default profile: 16 of the previous map, 8 of log channels, 32 log lines, 10 ids."""


@dataclass(frozen=True)
class Complexity:
    """What one student costs; FLOPs of one forward pass for one wafer, a multiply-add counted as two."""

    model: str
    parameters: int
    tokens: int
    visible: int
    """Tokens that the deep encoder sees at the mask ratio asked about."""
    flops: int
    """Of a full pass."""
    flops_masked: int
    """Of a masked pass."""
    flops_deep: int
    """Of the deep encoder inside the full pass: the only part that masking makes cheaper."""


@dataclass(frozen=True)
class PaperSize:
    """A size of the IKDDiT paper, known second hand (the ICCV 2025 paper itself was not at hand)."""

    parameters: float
    gflops: float
    like: str
    """Our size of the same letter at about 256 tokens, where the paper's figures fit DiT's way of counting."""


PAPER: dict[str, PaperSize] = {
    "S": PaperSize(19.4e6, 3.7, "S/4"),
    "XL": PaperSize(417.9e6, 73.9, "XL/4"),
}


def measure(
    model: str,
    mask_ratio: float = 0.5,
    channels: int = 2,
    outline: Outline = "wafer",
    context_dim: int = CONTEXT_DIM,
    context_tokens: int = CONTEXT_TOKENS,
) -> Complexity:
    """Count parameters and the FLOPs of a full and of a masked pass of one student.

    The condition's keys and values are made once per sample, not once per step, and are left out.

    Args:
        model: a name of the size table.
        mask_ratio: share of tokens hidden from the deep encoder, 0 <= ratio < 1.

    Raises:
        KeyError: no such size.
    """
    with torch.device("meta"):
        student = Student(model, context_dim, channels, outline).to("meta")
        x, valid = torch.empty(1, channels, 64, 64), torch.empty(1, 1, 64, 64)
        size, tokens = student.encoder.size, student.encoder.tokens
        key_value = torch.empty(1, size.heads, context_tokens, size.width // size.heads)
        cache = ConditionCache(
            torch.empty(1, size.width),
            [(key_value, key_value)] * size.deep,
            torch.ones(1, 1, 1, context_tokens, dtype=torch.bool),
        )
        visible = torch.empty(1, visible_count(tokens, mask_ratio), dtype=torch.long)
        c_noise = torch.empty(1)
    with torch.no_grad():
        with FlopCounterMode(display=False) as ends:
            shallow, condition = student.encoder.shallow(x, valid, c_noise, cache)
            student.decoder(shallow, shallow, condition)
        with FlopCounterMode(display=False) as deep:
            student.encoder.deepen(shallow, condition, cache)
        with FlopCounterMode(display=False) as masked:
            seen, _ = student.encoder.deepen(gather_tokens(shallow, visible), condition, cache)
            scatter_tokens(shallow, visible, seen)
    return Complexity(
        model=model,
        parameters=sum(p.numel() for p in student.parameters()),
        tokens=tokens,
        visible=visible.shape[1],
        flops=ends.get_total_flops() + deep.get_total_flops(),
        flops_masked=ends.get_total_flops() + masked.get_total_flops(),
        flops_deep=deep.get_total_flops(),
    )


def measure_all(mask_ratio: float = 0.5, names: Sequence[str] = ()) -> list[Complexity]:
    """The sizes named, or every size of the table in its order.

    Raises:
        ParamsError: no such size.

    >>> measure_all(names=["S/16"])
    Traceback (most recent call last):
        ...
    ikddit.errors.ParamsError: model S/16: not in the size table; known: T/8, T/4, ...
    """
    unknown = [name for name in names if name not in SIZES]
    if unknown:
        raise ParamsError(f"model {unknown[0]}: not in the size table; known: {', '.join(SIZES)}")
    return [measure(name, mask_ratio) for name in names or SIZES]


HEADINGS = ("model", "params", "tokens", "GFLOPs", "GMACs", "masked", "deep", "paper")


def table_row(c: Complexity) -> tuple[str, ...]:
    """One line of the size table, as text, the paper's figures beside the nearest size.

    >>> table_row(Complexity("S/4", 18_490_000, 216, 108, 5_770_000_000, 3_720_000_000, 3_900_000_000))
    ('S/4', '18.5 M', '216', '5.77', '2.88', '3.72', '68 %', 'S: 19.4 M, 3.7 G')
    """
    paper = [f"{n}: {p.parameters / 1e6:.1f} M, {p.gflops} G" for n, p in PAPER.items() if p.like == c.model]
    return (
        c.model,
        f"{c.parameters / 1e6:.1f} M",
        str(c.tokens),
        f"{c.flops / 1e9:.2f}",
        f"{c.flops / 2e9:.2f}",
        f"{c.flops_masked / 1e9:.2f}",
        f"{100 * c.flops_deep / c.flops:.0f} %",
        "; ".join(paper),
    )


def markdown_table(rows: Sequence[Complexity]) -> str:
    """The size table as in docs/model.md."""
    lines = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 2), "---"), *map(table_row, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def print_table(rows: Sequence[Complexity], mask_ratio: float) -> None:
    """The size table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"One forward pass of one 64x64 map; masked: GFLOPs, {mask_ratio:.0%} hidden")
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if 0 < i < len(HEADINGS) - 1 else "left", no_wrap=True)
    for row in rows:
        table.add_row(*table_row(row))
    Console().print(table)
