"""Words of log lines: a WordLevel tokenizer of HF `tokenizers`, in which numbers are one word, `<num>`.

A line is read twice: `parse_line` takes its numbers out and keeps their value, this module names the words that
are left. The template as a whole has a code of its own; the words serve lines whose template train never saw.
"""

import json
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikddit import atomic
from ikddit.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD_WORD, UNKNOWN_WORD, NUMBER_WORD = 0, 1, 2
"""Word codes: no word, a word not seen in train, and a number."""
RESERVED = ("<pad>", "<unk>", "<num>")
MIN_WORD_COUNT = 3
"""A word in fewer lines of train is unknown: one cannot learn from it."""
MAX_WORDS = 8192
"""The most frequent ones are kept; codes fit 16 bits."""
WORDS_PER_LINE = 24
"""A line's first words are read; the longest of the simulated batch report has 16."""


class LogTokenizer:
    """Word codes of line templates; its JSON is what `tokenizers` itself reads and writes."""

    def __init__(self, text: str) -> None:
        """Keep the JSON; the tokenizer is built when first used, so that training needs no `tokenizers`."""
        self.text = text
        vocabulary: dict[str, int] = json.loads(text)["model"]["vocab"]
        self.words = sorted(vocabulary, key=vocabulary.__getitem__)
        if self.words[: len(RESERVED)] != list(RESERVED):
            raise ValueError(f"the first words are {self.words[:3]}, expected {list(RESERVED)}")

    @classmethod
    def train(cls, templates: Mapping[str, int], min_count: int = MIN_WORD_COUNT) -> "LogTokenizer":
        """Learn the words of templates, each seen so many times: most frequent first, then by text.

        >>> tokens = LogTokenizer.train({"WARN hot spot x=<num> mm": 5, "EVENT once": 1})
        >>> tokens.encode("EVENT hot-spot X <num>mm")
        [1, 3, 5, 7, 2, 4]
        """
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

        tokenizer = Tokenizer(models.WordLevel(dict(zip(RESERVED, range(3), strict=True)), unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        # letters and digits in one go (a name such as LITH03 is one word); `<num>` as parse_line writes it
        words = Regex(r"<num>|[\p{L}\p{M}\p{N}_]+|%")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(words, "removed", invert=True)
        counts: Counter[str] = Counter()
        for template, count in templates.items():
            pieces = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(template))
            for word in {piece for piece, _ in pieces} - set(RESERVED):
                counts[word] += count
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        known = [*RESERVED, *(word for word, count in ranked if count >= min_count)][:MAX_WORDS]
        tokenizer.model = models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>")
        return cls(tokenizer.to_str())

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.text)

    def __len__(self) -> int:
        """Count the word codes, pad, unknown and number included."""
        return len(self.words)

    def encode(self, template: str) -> list[int]:
        """Codes of a template's first `WORDS_PER_LINE` words; 1 where train did not have the word."""
        codes: list[int] = self._tokenizer.encode(template, add_special_tokens=False).ids
        return codes[:WORDS_PER_LINE]

    def save(self, path: Path | str) -> None:
        """Write the tokenizer's own JSON, atomically."""
        atomic.write_json(path, json.loads(self.text))

    @classmethod
    def load(cls, path: Path | str) -> "LogTokenizer":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, or is no word-level tokenizer of ours.
        """
        try:
            data: Any = atomic.read_json(path)
            return cls(json.dumps(data))
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                str(path), "tokenizer", f"missing or malformed: {error}", "run `dvc repro prepare`"
            ) from None
