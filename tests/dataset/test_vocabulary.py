"""Log lines become templates and numbers; ids become codes."""

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ikddit.dataset.vocabulary import (
    MAX_LINE_CHARS,
    Vocabularies,
    VocabularyCounter,
    parse_line,
)
from ikddit.errors import InputError
from ikddit.mpom.schema import ID_FIELDS


@pytest.mark.parametrize(
    ("line", "template", "values"),
    [
        ("T 22.0 degC P 1002.0 mbar", "T <num> degC P <num> mbar", [22.0, 1002.0]),
        ("x=-10.7 y=+52.6mm", "x=<num> y=<num>mm", [-10.7, 52.6]),
        ("rate 1.5e-3 and -2E+4", "rate <num> and <num>", [1.5e-3, -2e4]),
        (".5 -.25", "<num> <num>", [0.5, -0.25]),
        ("dose 30 mJ/cm2, area 4cm2.", "dose <num> mJ/cm2, area <num>cm2.", [30.0, 4.0]),
        ("99.7% at 22°C", "<num>% at <num>°C", [99.7, 22.0]),
        ("LITH03 ETCH-3 RTC004-12 k3 v1.2", "LITH03 ETCH-3 RTC004-12 k3 v1.2", []),
        ("lot 6V78TJ10 reticle 5107D1457N1", "lot 6V78TJ10 reticle 5107D1457N1", []),
        ("host 10.0.0.5 firmware 1.2.3", "host 10.0.0.5 firmware 1.2.3", []),
        ("0-5 nm, 10 - 3", "<num>-<num> nm, <num> - <num>", [0.0, 5.0, 10.0, 3.0]),
        ("at 08:15:30", "at <num>:<num>:<num>", [8.0, 15.0, 30.0]),
        (
            "2025-01-05T08:15:30Z ok",
            "<num>-<num>-<num>T<num>:<num>:<num>Z ok",
            [2025.0, 1.0, 5.0, 8.0, 15.0, 30.0],
        ),
        ("(x,y)=(-1,+2)", "(x,y)=(<num>,<num>)", [-1.0, 2.0]),
        ("overflow 1e999", "overflow 1e999", []),
        ("literal <num> 3", "literal <num?> <num>", [3.0]),
        ("", "", []),
    ],
)
def test_stand_alone_numbers_become_values_and_names_stay(
    line: str, template: str, values: list[float]
) -> None:
    assert parse_line(line) == (template, values)


NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
FRAGMENTS = st.sampled_from(
    ["dose", " ", "=", "x=", "-", "+", ".", ",", "LITH03", "ETCH-3", "mm", "°C", "%", "(", ")", ":", "T", "e"]
) | st.integers(-9999, 9999).map(str)
LINES = st.lists(FRAGMENTS | st.floats(-1e6, 1e6).map(lambda v: f"{v:.4g}"), max_size=20).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=80) | LINES)
@example("1.2.3-4e5f6")
@example("٣ ² ½ 1²")
def test_template_and_values_give_the_line_back_up_to_number_formatting(line: str) -> None:
    template, values = parse_line(line)
    assert all(np.isfinite(np.float32(v)) for v in values)
    # Independent reading: the template's text, with any number where a placeholder stands, matches the line,
    # and the text found there has the parsed value.
    pattern = "".join(
        re.escape(part) if i % 2 == 0 else f"({NUMBER})"
        for i, part in enumerate(re.split("(<num>)", template))
    )
    match = re.fullmatch(pattern, line.replace("<num>", "<num?>"), re.DOTALL)
    assert match is not None
    assert [float(text) for text in match.groups()] == values


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=3000))
def test_any_text_is_read_and_the_template_is_bounded(line: str) -> None:
    template, values = parse_line(line)
    assert len(template) <= 5 * MAX_LINE_CHARS
    assert len(values) <= MAX_LINE_CHARS


@pytest.mark.parametrize("line", ["1" * 100_000, "a1-" * 50_000, "1a" * 50_000, "-.e" * 50_000])
def test_hostile_lines_are_cut_before_they_are_read(line: str) -> None:
    assert len(parse_line(line)[0]) <= 5 * MAX_LINE_CHARS


def ids(**known: list[str | None]) -> dict[str, list[str | None]]:
    n = max(len(v) for v in known.values())
    return {name: known.get(name, [None] * n) for name in ID_FIELDS}


def vocabularies() -> Vocabularies:
    counter = VocabularyCounter()
    counter.update(
        ids(scanner_id=["B", "A", None]), [["a 1", "b 2"], ["a 3", "once 1"], ["a 4", "b 1", "b 7"]]
    )
    return counter.finish(min_count=3)


def test_templates_seen_too_rarely_are_unknown() -> None:
    known = vocabularies()
    assert known.templates == ["a <num>", "b <num>"]
    codes, values, words = known.encode_lines([["b 5", "once 9"], None, []], max_lines=3, values_per_line=2)
    assert codes.tolist() == [[3, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert values[0].tolist() == [[5, 0], [9, 0], [0, 0]]
    assert not values[1:].any()
    assert not words[0, 0].any()  # a known line is named by its template
    assert words[0, 1, :3].tolist() == [1, 2, 0]  # "once" is too rare a word, then a number, then nothing
    assert not words[1:].any()


def test_an_unknown_line_keeps_the_words_train_knows() -> None:
    counter = VocabularyCounter()
    counter.update(ids(scanner_id=[None]), [["WARN hot spot x=1 mm"] * 3 + ["LENS heating residual 2"] * 3])
    known = counter.finish()
    _, values, words = known.encode_lines([["LENS  HOT-spot X=7.5mm moved"]], max_lines=2, values_per_line=2)
    names = [known.tokenizer.words[code] for code in words[0, 0] if code]
    assert names == ["lens", "hot", "spot", "x", "<num>", "mm", "<unk>"]
    assert values[0, 0].tolist() == [7.5, 0]


def test_the_spread_of_every_number_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    numbers = np.round(rng.normal([101985, -0.002], [12, 0.0003], (40, 2)), 5)
    counter = VocabularyCounter()
    for rows in (numbers[:10], numbers[10:30], numbers[30:]):
        lines = [[f"gas {a} Pa leak {b}", "constant 3", "quiet"] for a, b in rows.tolist()]
        counter.update(ids(scanner_id=[None] * len(lines)), lines)
    known = counter.finish()
    mean, std = known.value_moments(values_per_line=3)
    row = 2 + known.templates.index("gas <num> Pa leak <num>")
    assert mean[row] == pytest.approx([*numbers.mean(0), 0], rel=1e-6)
    assert std[row] == pytest.approx([*numbers.std(0), 1], rel=1e-5)
    constant = 2 + known.templates.index("constant <num>")
    assert (mean[constant, 0], std[constant, 0]) == (3, 1)
    assert mean[0].tolist() == mean[1].tolist() == [0, 0, 0]
    assert std[0].tolist() == std[1].tolist() == [1, 1, 1]


def test_words_of_known_templates_are_listed_by_code() -> None:
    known = vocabularies()
    words = known.template_words()
    assert words.shape[0] == known.template_size
    assert not words[:2].any()
    a = known.tokenizer.words.index("a")
    assert words[2, :3].tolist() == [a, 2, 0]


def test_ids_not_in_train_and_missing_ids_are_zero() -> None:
    codes = vocabularies().encode_ids(ids(scanner_id=["A", "B", "C", None, ""]))
    assert codes[:, ID_FIELDS.index("scanner_id")].tolist() == [1, 2, 0, 0, 0]
    assert codes.shape == (5, len(ID_FIELDS))
    assert codes.dtype == np.int32


def test_too_many_lines_keep_the_known_ones_in_order() -> None:
    known = vocabularies()
    codes, values, _ = known.encode_lines([["x 1", "b 2", "y 3", "a 4"]], max_lines=3, values_per_line=1)
    assert codes.tolist() == [[1, 3, 2]]
    assert values[0, :, 0].tolist() == [1, 2, 4]


def test_too_many_values_keep_the_first() -> None:
    _, values, _ = vocabularies().encode_lines([["1 2 3"]], max_lines=1, values_per_line=2)
    assert values.tolist() == [[[1, 2]]]


def test_sizes_count_the_reserved_codes() -> None:
    known = vocabularies()
    assert known.id_sizes[ID_FIELDS.index("scanner_id")] == 3
    assert known.template_size == 4


def test_vocabularies_survive_json(tmp_path) -> None:
    known = vocabularies()
    known.save(tmp_path / "v.json")
    again = Vocabularies.load(tmp_path / "v.json")
    assert (again.ids, again.templates) == (known.ids, known.templates)
    assert again.tokenizer.words == known.tokenizer.words
    lines = [["b 5", "a once 9"]]
    for one, other in zip(again.encode_lines(lines, 3, 2), known.encode_lines(lines, 3, 2), strict=True):
        assert np.array_equal(one, other)
    for one, other in zip(again.value_moments(2), known.value_moments(2), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("text", ['{"templates": []}', '{"templates"', "[" * 100_000, "\udcff"])
def test_damaged_vocabularies_are_refused_by_name(tmp_path, text: str) -> None:
    (tmp_path / "v.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"v\.json: vocabularies"):
        Vocabularies.load(tmp_path / "v.json")


@pytest.mark.parametrize("damage", ["missing", "other", "cut"])
def test_a_damaged_tokenizer_is_refused_by_name(tmp_path, damage: str) -> None:
    vocabularies().save(tmp_path / "v.json")
    path = tmp_path / "tokenizer.json"
    if damage == "missing":
        path.unlink()
    else:
        text = path.read_text()
        path.write_text(text.replace("<unk>", "<odd>") if damage == "other" else text[:40])
    with pytest.raises(InputError, match=r"tokenizer\.json: tokenizer"):
        Vocabularies.load(tmp_path / "v.json")
