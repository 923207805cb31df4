"""What the environment is made of: `make sbom` (a CycloneDX list of it) and `make audit` (its known vulnerabilities).

The tools of both live in an environment of their own (constraints-tools.txt), so that they do not change what they
look at.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from ikddit.atomic import atomic_path
from ikddit.checkout import checkout_root
from ikddit.errors import IkdditError

OURS = "ikddit"
CANARY = "jinja2==2.10"
"""A version with vulnerabilities published in 2019: whoever does not report it has no data to report from."""
FOUND, NOT_ASKED = 1, 2
"""Exit codes of `audit` beside 0: something is known, and nobody could be asked."""


@dataclass(frozen=True)
class Findings:
    """What pip-audit says about a list of requirements."""

    audited: int
    """Packages that were looked up."""
    skipped: tuple[str, ...]
    """Packages that the source of the data does not know, as `name: reason`."""
    known: tuple[str, ...]
    """Vulnerabilities, as `name version: id, mended in ...`."""


def read_findings(report: dict[str, Any]) -> Findings:
    """Read pip-audit's JSON.

    A package that was skipped is not a package without vulnerabilities, though pip-audit's own last line and exit
    code make no difference.

    >>> read_findings({"dependencies": [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "x"}]})
    Findings(audited=1, skipped=('b: x',), known=())
    """
    packages = report["dependencies"]
    looked_up = [package for package in packages if "skip_reason" not in package]
    known = [
        f"{package['name']} {package['version']}: {vuln['id']}"
        + (
            f", mended in {' '.join(vuln['fix_versions'])}"
            if vuln.get("fix_versions")
            else ", no mended version"
        )
        for package in looked_up
        for vuln in package["vulns"]
    ]
    skipped = [f"{p['name']}: {p['skip_reason']}" for p in packages if "skip_reason" in p]
    return Findings(len(looked_up), tuple(skipped), tuple(known))


def installed() -> list[str]:
    """Pins of all that is installed here but the project; a local build tag (`+cpu`) is in no data base.

    >>> any(pin.startswith("torch==") and "+" not in pin for pin in installed())
    True
    """
    pins = {found.name.lower(): found.version.partition("+")[0] for found in distributions() if found.name}
    return [f"{name}=={version}" for name, version in sorted(pins.items()) if name != OURS]


def ask(pip_audit: Sequence[str], pins: Sequence[str], service: str) -> Findings:
    """Run pip-audit on pins; it resolves and installs nothing.

    Args:
        pip_audit: command that starts it.
        pins: `name==version` each.
        service: `osv` or `pypi`, whose data are asked.

    Raises:
        IkdditError: pip-audit gave no answer, as without a network; with its last line.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wanted, report = Path(scratch, "pins.txt"), Path(scratch, "report.json")
        wanted.write_text("\n".join(pins))
        command = [
            *pip_audit,
            "-r",
            str(wanted),
            "--no-deps",
            "--disable-pip",
            "-s",
            service,
            "--timeout",
            "15",
        ]
        command += ["--progress-spinner", "off", "-f", "json", "-o", str(report)]
        done = subprocess.run(command, capture_output=True, text=True)
        if not report.is_file():
            lines = done.stderr.strip().splitlines() or ["no output"]
            raise IkdditError(f"pip-audit ({service}) ended with code {done.returncode}: {lines[-1][:300]}")
        return read_findings(json.loads(report.read_text()))


def audit(pip_audit: Sequence[str], service: str) -> int:
    """Print the known vulnerabilities of this environment.

    Returns:
        0 if none is known, `FOUND`, or `NOT_ASKED` where the data could not be had: that is no clean bill.
    """
    try:
        if not ask(pip_audit, [CANARY], service).known:
            raise IkdditError(f"{service} knows nothing of {CANARY}, which has published vulnerabilities")
        found = ask(pip_audit, installed(), service)
    except IkdditError as error:
        print(f"audit: NOT DONE, the vulnerability data could not be had: {error}", file=sys.stderr)
        print("audit: run it where api.osv.dev (or, with SERVICE=pypi, pypi.org) is reached", file=sys.stderr)
        return NOT_ASKED
    for line in (*found.known, *(f"not audited: {skipped}" for skipped in found.skipped)):
        print(line)
    print(f"audit: {found.audited} packages asked for, {len(found.known)} vulnerabilities known ({service})")
    return FOUND if found.known else 0


def without_places(bom: dict[str, Any]) -> dict[str, Any]:
    """The list without references to files of this machine, which an editable install leaves in it.

    >>> without_places({"components": [{"name": "a", "externalReferences": [{"url": "file:///home/me"}]}]})
    {'components': [{'name': 'a', 'externalReferences': []}]}
    """

    def public(component: dict[str, Any]) -> dict[str, Any]:
        if "externalReferences" not in component:
            return component
        kept = [r for r in component["externalReferences"] if not r["url"].startswith("file:")]
        return component | {"externalReferences": kept}

    return bom | {"components": [public(component) for component in bom["components"]]}


def sbom(cyclonedx: Sequence[str], out: Path) -> int:
    """Write the CycloneDX list of this environment; the same environment gives the same file.

    Returns:
        Number of components.

    Raises:
        IkdditError: cyclonedx-py failed.
    """
    project = checkout_root() / "pyproject.toml"
    command = [
        *cyclonedx,
        "environment",
        "--output-reproducible",
        "--pyproject",
        str(project),
        sys.executable,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise IkdditError(f"cyclonedx-py ended with code {done.returncode}: {done.stderr.strip()[-300:]}")
    bom = without_places(json.loads(done.stdout))
    with atomic_path(out) as scratch:
        scratch.write_text(json.dumps(bom, indent=2) + "\n")
    return len(bom["components"])


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.inventory", description=__doc__.splitlines()[0]
    )
    parser.add_argument("what", choices=("sbom", "audit"))
    parser.add_argument("--tools", type=Path, required=True, help="bin folder of the tools' own environment")
    parser.add_argument("--out", type=Path, default=Path("sbom.json"), help="file of `sbom`")
    parser.add_argument("--service", choices=("osv", "pypi"), default="osv", help="whose data `audit` asks")
    arguments = parser.parse_args()
    if arguments.what == "audit":
        raise SystemExit(audit([str(arguments.tools / "pip-audit")], arguments.service))
    try:
        count = sbom([str(arguments.tools / "cyclonedx-py")], arguments.out)
    except IkdditError as error:
        raise SystemExit(f"sbom: {error}") from None
    print(f"sbom: {arguments.out}: {count} components (CycloneDX)")


if __name__ == "__main__":
    main()
