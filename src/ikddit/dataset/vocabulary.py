"""Words of the conditions: known ids per field, and templates of log lines with their numbers taken out."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int16, Int32

from ikddit import atomic
from ikddit.dataset.tokenizer import WORDS_PER_LINE, LogTokenizer
from ikddit.errors import InputError
from ikddit.mpom.schema import ID_FIELDS

PLACEHOLDER = "<num>"
PAD, UNKNOWN, FIRST_TEMPLATE = 0, 1, 2
"""Template codes: no line, a template not seen in train, and the first of the vocabulary."""
MAX_LINE_CHARS = 1000
"""A longer line is cut before it is read, so that neither time nor template length is unbounded."""
MAX_TEMPLATES = 4096
"""The most frequent ones are kept; the rest is unknown."""
MIN_TEMPLATE_COUNT = 3
"""A template seen in fewer lines of train is unknown: one cannot learn from it, and it may name a wafer."""
TOKENIZER_FILE = "tokenizer.json"
_FLOAT32_MAX = float(np.finfo(np.float32).max)

# Order matters: words first, so that digits glued behind letters or an id hyphen (LITH03, ETCH-3, RTC004)
# are consumed with their word. Possessive quantifiers keep it linear and forbid half-matched numbers.
_TOKEN = re.compile(
    r"""
      (?<=[0-9])T(?=[0-9]{2}:)                                  # the T of an ISO time: a separator
    | [^\W\d]\w*+(?:[-.]\w++)*+                                 # a word or an id
    | (?P<number>
        (?:(?<![\w.)])[+-])?                                    # a sign, unless it is a hyphen or a minus
        (?>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?>[eE][+-]?[0-9]+)?+
        (?:(?![\w]|\.[0-9])                                     # ends here,
          |(?=[^\W\d_]++[23]?(?!\w))                            # or goes on with a unit (nm, degC, cm2),
          |(?=T[0-9]{2}:)))                                     # or with the time of an ISO date
    | \w++(?:[-.]\w++)*+                                        # an id that starts with a digit, a version
    | <num>
    """,
    re.VERBOSE,
)


def parse_line(line: str) -> tuple[str, list[float]]:
    """Take the stand-alone numbers out of a log line.

    A number may carry a sign, decimals, an exponent, a unit behind it, and may follow `=`. Digits that belong
    to a name (`LITH03`, `ETCH-3`, `6V78TJ10`, `1.2.3`) stay, as does a number beyond float32. A line is cut
    at `MAX_LINE_CHARS`. Any text is accepted; a literal `<num>` becomes `<num?>`.

    Returns:
        The template, each number replaced by `<num>`, and the numbers in order.

    >>> parse_line("WARN levelling hot spot x=-10.7 y=-52.6 mm dz=+52nm on LITH03")
    ('WARN levelling hot spot x=<num> y=<num> mm dz=<num>nm on LITH03', [-10.7, -52.6, 52.0])
    >>> parse_line("dose 30.1 mJ/cm2, chamber ETCH-3, drift 1.5e-3")
    ('dose <num> mJ/cm2, chamber ETCH-3, drift <num>', [30.1, 0.0015])
    """
    values: list[float] = []

    def replace(match: re.Match[str]) -> str:
        text = match.group()
        if match.lastgroup != "number":
            return "<num?>" if text == PLACEHOLDER else text
        value = float(text)
        if abs(value) > _FLOAT32_MAX:
            return text
        values.append(value)
        return PLACEHOLDER

    return _TOKEN.sub(replace, line[:MAX_LINE_CHARS]), values


class ValueMoments:
    """Running mean and spread of the numbers of one template, slot by slot."""

    def __init__(self, first: Sequence[float]) -> None:
        # Sums of differences from the first line seen: no digits are lost on 101985 +- 12 Pa.
        self.shift = list(first)
        self.sums = [0.0] * len(first)
        self.squares = [0.0] * len(first)
        self.count = 0

    def add(self, values: Sequence[float]) -> None:
        """Count one more line of the template."""
        self.count += 1
        for slot, (value, shift) in enumerate(zip(values, self.shift, strict=True)):
            self.sums[slot] += value - shift
            self.squares[slot] += (value - shift) ** 2

    def finish(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of each slot; 1 for one that never changes."""
        out = []
        for shift, total, square in zip(self.shift, self.sums, self.squares, strict=True):
            offset = total / self.count
            spread = math.sqrt(max(square / self.count - offset**2, 0.0))
            mean = shift + offset
            out.append((mean, spread if spread > 1e-6 * max(abs(mean), 1e-6) else 1.0))
        return out


@dataclass
class VocabularyCounter:
    """Collects ids, templates and their numbers over the batches of the train split."""

    ids: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in ID_FIELDS})
    templates: Counter[str] = field(default_factory=Counter)
    values: dict[str, ValueMoments] = field(default_factory=dict)

    def update(self, ids: Mapping[str, Sequence[str | None]], lines: Iterable[Sequence[str] | None]) -> None:
        """Add a batch: columns of ids by field name, and the log lines of each wafer."""
        for name in ID_FIELDS:
            self.ids[name].update(value for value in ids[name] if value is not None)
        for wafer in lines:
            for line in wafer or ():
                template, numbers = parse_line(line)
                self.templates[template] += 1
                if numbers:
                    self.values.setdefault(template, ValueMoments(numbers)).add(numbers)

    def finish(self, min_count: int = MIN_TEMPLATE_COUNT) -> "Vocabularies":
        """Sort what was seen: ids by name, templates by frequency, then by text."""
        ranked = sorted(self.templates.items(), key=lambda item: (-item[1], item[0]))
        templates = [text for text, count in ranked if count >= min_count][:MAX_TEMPLATES]
        return Vocabularies(
            ids={name: sorted(self.ids[name]) for name in ID_FIELDS},
            templates=templates,
            tokenizer=LogTokenizer.train(self.templates),
            values=[self.values[text].finish() if text in self.values else [] for text in templates],
        )


class Vocabularies:
    """Known ids per field, known log-line templates with the spread of their numbers, and known words.

    All are from train only.
    """

    def __init__(
        self,
        ids: dict[str, list[str]],
        templates: list[str],
        tokenizer: LogTokenizer | None = None,
        values: list[list[tuple[float, float]]] | None = None,
    ) -> None:
        """Keep what train knows.

        Args:
            ids: field -> known ids; their order is their code.
            templates: known templates; their order is their code.
            tokenizer: words of the lines; learnt from `templates` if not given.
            values: mean and standard deviation of each number of each template; (0, 1) if not given.
        """
        self.ids = ids
        self.templates = templates
        self.tokenizer = tokenizer or LogTokenizer.train(dict.fromkeys(templates, 1), min_count=1)
        self.values = values or [[(0.0, 1.0)] * text.count(PLACEHOLDER) for text in templates]
        self._id_codes = {name: {text: i + 1 for i, text in enumerate(ids[name])} for name in ID_FIELDS}
        self._template_codes = {text: i + FIRST_TEMPLATE for i, text in enumerate(templates)}

    @property
    def id_sizes(self) -> list[int]:
        """Number of codes per id field, the 0 of unknown included: sizes of embedding tables."""
        return [len(self.ids[name]) + 1 for name in ID_FIELDS]

    @property
    def template_size(self) -> int:
        """Number of template codes, pad and unknown included."""
        return len(self.templates) + FIRST_TEMPLATE

    def encode_ids(self, ids: Mapping[str, Sequence[str | None]]) -> Int32[np.ndarray, "n 10"]:
        """Codes of id columns (by field name, each of length n): 0 unknown or missing, else 1 + index."""
        columns = [[self._id_codes[name].get(text or "", 0) for text in ids[name]] for name in ID_FIELDS]
        return np.array(columns, dtype=np.int32).reshape(len(ID_FIELDS), -1).T

    def template_words(self) -> Int16[np.ndarray, "T W"]:
        """Word codes of every template code, padded with 0; pad and unknown templates have none."""
        out = np.zeros((self.template_size, WORDS_PER_LINE), np.int16)
        for row, text in zip(out[FIRST_TEMPLATE:], self.templates, strict=True):
            codes = self.tokenizer.encode(text)
            row[: len(codes)] = codes
        return out

    def value_moments(
        self, values_per_line: int
    ) -> tuple[Float32[np.ndarray, "T V"], Float32[np.ndarray, "T V"]]:
        """Mean and standard deviation of each number of every template code; 0 and 1 where there is none."""
        mean = np.zeros((self.template_size, values_per_line), np.float32)
        std = np.ones_like(mean)
        for row, moments in enumerate(self.values, FIRST_TEMPLATE):
            for slot, (m, s) in enumerate(moments[:values_per_line]):
                mean[row, slot], std[row, slot] = m, s
        return mean, std

    def encode_lines(
        self, lines: Sequence[Sequence[str] | None], max_lines: int, values_per_line: int
    ) -> tuple[Int32[np.ndarray, "n L"], Float32[np.ndarray, "n L V"], Int16[np.ndarray, "n L W"]]:
        """Codes, raw numbers and words of each wafer's log lines.

        A wafer with more than `max_lines` keeps its first lines with a known template, in order, and fills up
        with unknown ones; a line with more than `values_per_line` numbers keeps the first.

        Returns:
            Template codes (0 pad, 1 unknown, 2 + index in `templates`), the numbers, 0 where there is none,
            and the word codes of lines with an unknown template, 0 for all others: a known template's words
            are in `template_words`. All are zero for a wafer without lines (`None` or empty).
        """
        codes = np.zeros((len(lines), max_lines), np.int32)
        values = np.zeros((len(lines), max_lines, values_per_line), np.float32)
        words = np.zeros((len(lines), max_lines, WORDS_PER_LINE), np.int16)
        for row, wafer in enumerate(lines):
            parsed = [parse_line(line) for line in wafer or ()]
            known = [self._template_codes.get(template, UNKNOWN) for template, _ in parsed]
            order = range(len(parsed))
            if len(parsed) > max_lines:
                order = sorted(sorted(order, key=lambda i: known[i] == UNKNOWN)[:max_lines])  # type: ignore[assignment]
            for place, i in enumerate(order):
                codes[row, place] = known[i]
                numbers = parsed[i][1][:values_per_line]
                values[row, place, : len(numbers)] = numbers
                if known[i] == UNKNOWN:
                    named = self.tokenizer.encode(parsed[i][0])
                    words[row, place, : len(named)] = named
        return codes, values, words

    def save(self, path: Path | str) -> None:
        """Write JSON, and the words as `tokenizer.json` beside it, atomically."""
        data = {"ids": self.ids, "templates": self.templates, "values": self.values}
        atomic.write_json(path, data)
        self.tokenizer.save(Path(path).with_name(TOKENIZER_FILE))

    @classmethod
    def load(cls, path: Path | str) -> "Vocabularies":
        """Read what `save` wrote.

        Raises:
            InputError: missing, no JSON, without a key or with something else in it, or no usable tokenizer beside it.
        """
        try:
            data = atomic.read_json(path)
            ids = {name: [str(text) for text in data["ids"][name]] for name in ID_FIELDS}
            templates = [str(text) for text in data["templates"]]
            values = [[(float(mean), float(std)) for mean, std in slots] for slots in data["values"]]
            if len(values) != len(templates) or any(std <= 0 for slots in values for _, std in slots):
                raise ValueError("values do not fit the templates")
        except (OSError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise InputError(
                str(path), "vocabularies", f"missing or malformed: {error}", "run `dvc repro prepare`"
            ) from None
        return cls(ids, templates, LogTokenizer.load(Path(path).with_name(TOKENIZER_FILE)), values)
