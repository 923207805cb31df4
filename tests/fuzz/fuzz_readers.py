"""Fuzz every reader of hostile input: `make fuzz CASES=100000`, or `python tests/fuzz/fuzz_readers.py --help`.

Each target runs in processes of its own, so that a crash of native code costs one case. Two engines make the
cases: seeded mutation of sound inputs (always; the same seed makes the same cases), and libFuzzer guided by the
coverage of `ikddit` through atheris, where that can be imported, with the same mutators.

Prints a line per target and engine, writes the input of each finding, and exits with 1 if there is any.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent / "src"), str(TESTS), str(TESTS / "mpom"), str(TESTS / "fuzz")]

if TYPE_CHECKING:
    from contract import Finding, Target

ENGINES = ("mutation", "atheris")
SILENCE_S = 900.0
"""Without a new case for so long, a process hangs in native code, which no alarm interrupts."""
CORPUS = 200
"""Cases kept to go on from, per target, beside the sound inputs."""


@dataclass
class Tally:
    """What became of one target under one engine."""

    target: str
    engine: str
    cases: int = 0
    cpu_s: float = 0.0
    slowest_s: float = 0.0
    peak_mib: int = 0
    grown_mib: int = 0
    """Peak less what the sound inputs took."""
    refused: int = 0
    findings: list[dict[str, str]] = field(default_factory=list)
    known: int = 0
    """Findings that are on record and not mended (`known.py`)."""


def targets() -> "list[Target]":
    """All of them."""
    from model_targets import MODEL_TARGETS
    from targets import RAW_TARGETS

    return [*RAW_TARGETS, *MODEL_TARGETS]


def target_named(name: str) -> "Target":
    """One of them; torch and MLflow are imported only for those that need them."""
    from targets import RAW_TARGETS

    raw = {target.name: target for target in RAW_TARGETS}
    return raw[name] if name in raw else {target.name: target for target in targets()}[name]


def atheris_is_there() -> bool:
    """Whether the coverage-guided engine can be imported."""
    try:
        import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]  # noqa: F401
    except ImportError:
        return False
    return True


# The process of one target ------------------------------------------------------------------------------------


class Session:
    """Runs cases, counts, and leaves on disk what the parent needs if the process dies."""

    def __init__(self, target: "Target", engine: str, folder: Path) -> None:
        from contract import Checker

        self.target, self.folder = target, folder
        self.tally = Tally(target.name, engine)
        self._checker = Checker(folder)
        self._seen: set[tuple[str, str, str]] = set()
        self._checker.warm_up(target)
        self._before_mib = self._peak()
        self._start = time.process_time()

    def _peak(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

    def case(self, data: bytes) -> None:
        """Check one case."""
        from known import reason_of

        (self.folder / "current").write_bytes(data)
        finding = self._checker.check(self.target, data)
        tally = self.tally
        tally.cases += 1
        tally.slowest_s = max(tally.slowest_s, self._checker.cpu_s)
        tally.refused += self._checker.refused
        if finding is not None:
            if reason_of(finding) is not None:
                tally.known += 1
            elif finding.key not in self._seen:
                self._seen.add(finding.key)
                tally.findings.append(self._kept(finding))
                self._save()
        if tally.cases % 50 == 0:
            self._save()

    def _kept(self, finding: "Finding") -> dict[str, str]:
        name = f"{finding.target.replace(' ', '_')}-{finding.kind}-{zlib.crc32(finding.data):08x}"
        (self.folder / name).write_bytes(finding.data)
        return {"kind": finding.kind, "where": finding.where, "detail": finding.detail, "input": name}

    def _save(self) -> None:
        self.tally.cpu_s = time.process_time() - self._start
        self.tally.peak_mib = self._peak()
        self.tally.grown_mib = self.tally.peak_mib - self._before_mib
        scratch = self.folder / "tally.part"
        scratch.write_text(json.dumps(asdict(self.tally)))
        os.replace(scratch, self.folder / "tally.json")

    def end(self) -> None:
        """Write the last counts and remove the scratch folder."""
        self._save()
        self._checker.close()


def mutated(target: "Target", cases: int, seed: int, run: Callable[[bytes], None]) -> None:
    """Cases from sound inputs and from earlier cases, changed once to three times."""
    rng = Random(f"{seed}:{target.name}")
    sound = target.seeds()
    corpus: list[bytes] = []
    for number in range(cases):
        data = rng.choice(corpus) if corpus and rng.randrange(4) == 0 else rng.choice(sound)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            data = target.mutate(data, rng)
        run(data)
        if number % 10 == 0 and len(data) < 1 << 18:
            if len(corpus) < CORPUS:
                corpus.append(data)
            else:
                corpus[rng.randrange(CORPUS)] = data


def guided(target: "Target", cases: int, seed: int, folder: Path, session: Session) -> None:
    """Let libFuzzer run the cases; it ends the process itself."""
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds()):
        (corpus / f"sound-{number}").write_bytes(data)

    def mutate(data: bytes, size: int, number: int) -> bytes:
        rng = Random(number)
        if rng.randrange(4) == 0:
            return bytes(atheris.Mutate(data, size))
        return target.mutate(data, rng)[:size]

    def run(data: bytes) -> None:
        session.case(data)
        if session.tally.cases >= cases:
            session.end()
            os._exit(0)

    options = [
        f"-seed={seed + 1}",
        "-max_len=1000000",
        "-timeout=3600",
        "-rss_limit_mb=0",
        "-print_final_stats=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], run, custom_mutator=mutate)
    atheris.Fuzz()


def child(name: str, engine: str, cases: int, seed: int, folder: Path) -> None:
    """Run one target's cases in this process."""
    if engine == "atheris":
        import atheris

        # The sound inputs are read in here too: what readers import late is to be instrumented as well.
        with atheris.instrument_imports(include=["ikddit"]):
            session = Session(target_named(name), engine, folder)
        guided(session.target, cases, seed, folder, session)
    else:
        session = Session(target_named(name), engine, folder)
        mutated(session.target, cases, seed, session.case)
        session.end()


# The run ------------------------------------------------------------------------------------------------------


def run_target(name: str, engine: str, cases: int, seed: int, out: Path, tools: str) -> Tally:
    """Run a target's cases in a child; one that dies is a finding, and another goes on with the rest."""
    total = Tally(name, engine)
    attempts = 0
    while total.cases < cases and attempts < 10:
        folder = out / f"{name.replace(' ', '_')}-{engine}-{attempts}"
        folder.mkdir(parents=True)
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            str(Path(__file__).resolve()),
            "--child",
            name,
            "--engine",
            engine,
        ]
        command += ["--cases", str(cases - total.cases), "--seed", str(seed + attempts), "--out", str(folder)]
        command += ["--tools", tools]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            status = _wait(process, folder / "current")
        _add(total, folder, status)
        attempts += 1
        for scratch in (*folder.glob("ikddit-fuzz-*"), folder / "corpus"):
            shutil.rmtree(scratch, ignore_errors=True)
        if status == 0:
            break
    return total


def _wait(process: "subprocess.Popen[bytes]", heartbeat: Path) -> int:
    while True:
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            alive = heartbeat.stat().st_mtime if heartbeat.exists() else time.time()
            if time.time() - alive > SILENCE_S:
                process.kill()
                return process.wait()


def _add(total: Tally, folder: Path, status: int) -> None:
    path = folder / "tally.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in ("cases", "cpu_s", "known", "refused"):
        setattr(total, name, getattr(total, name) + found.get(name, 0))
    for name in ("slowest_s", "peak_mib", "grown_mib"):
        setattr(total, name, max(getattr(total, name), found.get(name, 0)))
    for finding in found.get("findings", []):
        total.findings.append(finding | {"input": str(folder / finding["input"])})
    if status != 0:
        died = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        kept = folder / f"died-{folder.name}"
        if (folder / "current").exists():
            shutil.copy(folder / "current", kept)
        tail = (folder / "log").read_text(errors="replace")[-2000:]
        total.findings.append({"kind": "died", "where": died, "detail": tail, "input": str(kept)})


def report(tallies: list[Tally]) -> str:
    """The table of a run."""
    lines = [
        f"{'target':<20} {'engine':<9} {'cases':>7} {'refused':>7} {'cpu s':>7} {'cases/s':>8} {'slowest s':>9} "
        f"{'peak MiB':>8} {'grown':>6} {'known':>6} {'findings':>8}"
    ]
    for t in tallies:
        rate = t.cases / t.cpu_s if t.cpu_s else 0.0
        lines.append(
            f"{t.target:<20} {t.engine:<9} {t.cases:>7} {t.refused:>7} {t.cpu_s:>7.1f} {rate:>8.0f} "
            f"{t.slowest_s:>9.3f} {t.peak_mib:>8} {t.grown_mib:>6} {t.known:>6} {len(t.findings):>8}"
        )
    cases, cpu_s = sum(t.cases for t in tallies), sum(t.cpu_s for t in tallies)
    findings = sum(len(t.findings) for t in tallies)
    lines.append(f"{cases} cases in {cpu_s:.0f} s of processor time, {findings} findings")
    return "\n".join(lines)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100_000, help="of all targets and engines together")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same cases")
    parser.add_argument("--targets", nargs="*", help="names; all by default")
    parser.add_argument(
        "--out", type=Path, default=Path(".ikddit/fuzz"), help="inputs of findings; emptied first"
    )
    parser.add_argument("--tools", default="", help="site-packages in which atheris lies, looked at last")
    parser.add_argument("--engine", choices=ENGINES, help="only this one")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.tools:
        sys.path.append(given.tools)
    if given.child:
        child(given.child, given.engine, given.cases, given.seed, given.out)
        return
    shutil.rmtree(given.out, ignore_errors=True)
    chosen = [target_named(name) for name in given.targets] if given.targets else targets()
    engines = [given.engine] if given.engine else list(ENGINES)
    if "atheris" in engines and not atheris_is_there():
        print("atheris cannot be imported: mutation only, nothing is guided by coverage")
        engines.remove("atheris")
    weight = sum(t.weight for t in chosen) * len(engines)
    tallies = []
    for target in chosen:
        for engine in engines:
            share = -(-given.cases * target.weight // weight)
            tallies.append(
                run_target(target.name, engine, share, given.seed, given.out.resolve(), given.tools)
            )
            print(report(tallies[-1:]).splitlines()[1], flush=True)
    print(report(tallies))
    for tally in tallies:
        for finding in tally.findings:
            print(
                f"\n{tally.target} ({tally.engine}): {finding['kind']}: {finding['where']}\n  {finding['input']}"
            )
            print("  " + finding["detail"].strip().replace("\n", "\n  ")[-1500:])
    sys.exit(any(tally.findings for tally in tallies))


if __name__ == "__main__":
    main()
