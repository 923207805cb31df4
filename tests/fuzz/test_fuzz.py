"""A few hostile inputs for every reader, in the test suite; `make fuzz` tries a hundred thousand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from contract import Checker, Finding, Target, require
from fuzz_readers import Tally, run_target, targets
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from known import KNOWN, reason_of

from ikddit.errors import InputError

TARGETS = {target.name: target for target in targets()}
COSTLY = {"normaliser.json", "vocabularies.json", "tokenizer.json", "sha256.json", "model.safetensors"}
"""Each of their cases builds a model, some 30 ms."""


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checker]:
    made = Checker()
    yield made
    made.close()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_hostile_input_is_read_or_refused_by_name(checker: Checker, name: str) -> None:
    target = TARGETS[name]
    checker.warm_up(target)

    @hypothesis_settings(
        max_examples=5 if name in COSTLY else 20,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),  # a finding is shown as it is: shrinking would cost more than the test
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(target.seeds()), st.randoms(use_true_random=False), st.integers(1, 2))
    def check(data: bytes, rng: Random, times: int) -> None:
        for _ in range(times):
            data = target.mutate(data, rng)
        finding = checker.check(target, data)
        if finding is not None and reason_of(finding) is None:
            pytest.fail(f"{finding.kind}: {finding.where}\n{finding.detail}\n{finding.data[:1000]!r}")

    check()


# The contract itself ------------------------------------------------------------------------------------------


def broken(read: object) -> Target:
    return Target("broken", read, lambda: [], lambda data, rng: data, ("a.txt",), 1)  # type: ignore[arg-type]


def hangs(data: bytes, folder: Path) -> None:
    while True:
        try:
            sum(range(10_000))
        except Exception:
            continue


def writes_beside(data: bytes, folder: Path) -> None:
    (folder.parent / "sentinel" / "dropped.txt").write_bytes(data)


def writes_where_it_stands(data: bytes, folder: Path) -> None:
    Path("dropped.txt").write_bytes(data)


def starts_something(data: bytes, folder: Path) -> None:
    import subprocess

    subprocess.run(["true"], check=True)


def takes_too_much(data: bytes, folder: Path) -> None:
    bytearray(64 << 30)


def names_nothing(data: bytes, folder: Path) -> None:
    raise InputError("b.txt", "id", "no number", "write one")


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda data, folder: int(data), "exception"),
        (lambda data, folder: require(False, "counts add up"), "promise"),
        (hangs, "hang"),
        (writes_beside, "outside"),
        (writes_where_it_stands, "outside"),
        (starts_something, "outside"),
        (takes_too_much, "memory"),
        (names_nothing, "unnamed"),
    ],
)
def test_each_broken_promise_is_seen(monkeypatch: pytest.MonkeyPatch, read: object, kind: str) -> None:
    monkeypatch.setattr("contract.CPU_S", 0.2)
    checker = Checker()
    try:
        checker.warm_up(broken(read))
        finding = checker.check(broken(read), b"x")
    finally:
        checker.close()
    assert finding is not None
    assert (finding.kind, finding.data) == (kind, b"x")


def test_what_is_refused_by_name_or_written_in_its_folder_keeps_the_promises(checker: Checker) -> None:
    def refuses(data: bytes, folder: Path) -> None:
        (folder / "a.txt").write_bytes(data)
        raise InputError("a.txt", "id", "no number", "write one")

    assert checker.check(broken(refuses), b"x") is None


def test_a_run_counts_its_cases_and_is_repeatable(tmp_path: Path) -> None:
    first, again = (run_target("id", "mutation", 300, 3, tmp_path / name, "") for name in ("first", "again"))
    assert isinstance(first, Tally)
    assert (first.cases, first.findings) == (300, [])
    assert 0 < first.refused < 300
    assert first.refused == again.refused


def test_findings_on_record_are_no_news_and_say_why_they_are_not_mended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert all(target in TARGETS and len(reason) > 20 for target, _, reason in KNOWN)
    finding = Finding("id", "hang", "source.py:12", "", b"")
    assert reason_of(finding) is None
    monkeypatch.setattr("known.KNOWN", [("id", r"hang source\.py:\d+", "because")])
    assert reason_of(finding) == "because"
    assert reason_of(replace(finding, kind="memory")) is None
