"""Words of log lines: names stay whole, numbers are one word, the order of training does not matter."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ikddit.dataset.tokenizer import MAX_WORDS, NUMBER_WORD, UNKNOWN_WORD, WORDS_PER_LINE, LogTokenizer
from ikddit.dataset.vocabulary import parse_line

SEEN = {"WARN hot spot x=<num> mm on LITH03": 9, "EVENT re-zero ok": 4, "EVENT once": 1}
TOKENS = LogTokenizer.train(SEEN)


def words(text: str) -> list[str]:
    return [TOKENS.words[code] for code in TOKENS.encode(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HOT   spot", ["hot", "spot"]),
        ("spot(x:<num>mm)", ["spot", "x", "<num>", "mm"]),
        ("Re-Zero LITH03 LITH04", ["re", "zero", "lith03", "<unk>"]),
        ("ｗａｒｎ once", ["warn", "<unk>"]),  # full-width letters; a word seen once is unknown
        ("... --", []),
        ("", []),
    ],
)
def test_words_are_found_whatever_stands_between_them(text, expected):
    assert words(text) == expected


def test_order_of_training_does_not_matter():
    backwards = LogTokenizer.train(dict(reversed(SEEN.items())))
    assert backwards.words == TOKENS.words


def test_the_vocabulary_is_bounded():
    many = LogTokenizer.train({f"word{i}": 3 for i in range(MAX_WORDS + 50)})
    assert len(many) == MAX_WORDS


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_line_has_a_bounded_number_of_known_codes(line):
    codes = TOKENS.encode(parse_line(line)[0])
    assert len(codes) <= WORDS_PER_LINE
    assert all(UNKNOWN_WORD <= code < len(TOKENS) for code in codes)


def test_every_number_is_the_number_word():
    template, values = parse_line("x=-10.7 y=3e2")
    assert TOKENS.encode(template).count(NUMBER_WORD) == len(values) == 2


def test_the_file_is_the_librarys_own(tmp_path):
    TOKENS.save(tmp_path / "tokenizer.json")
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "WARN hot spot x=<num> nowhere"
    assert theirs.encode(text).ids == LogTokenizer.load(tmp_path / "tokenizer.json").encode(text)
