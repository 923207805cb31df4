"""What docs/security.md promises: no code in data, no shell, loopback, and no secret in a log or report."""

import ast
import inspect
import io
import logging
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from code_rules import broken_rules
from ikddit.checkout import tracking_uri
from ikddit.console import configure_logging
from ikddit.console import log as project_log
from ikddit.errors import IkdditError, InputError, RegistryError, without_passwords
from ikddit.registry.store import Store, locate_store, open_store
from ikddit.registry.ui import ui_command

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    p for folder in ("src", "stages", "pipelines", "benchmarks") for p in (ROOT / folder).rglob("*.py")
)
SECRET = "hunter2"
sys.path.insert(0, str(ROOT))  # for pipelines


# Rules that the source itself shows ----------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_source_breaks_no_rule(path: Path) -> None:
    assert broken_rules(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import dill as d",
        "import yaml\nyaml.safe_load(text)",
        "from ruamel.yaml import YAML\nYAML(typ='unsafe').load(text)",
        "YAML(typ=kind)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "np.lib.format.read_array(handle)",
        "pd.read_pickle(path)",
        "subprocess.run('ls', shell=True)",
        "subprocess.run(command, shell=flag)",
        "os.system('ls')",
        "eval(text)",
        "exec(text)",
        "archive.extractall(folder)",
        "shutil.unpack_archive(path)",
        "torch.hub.load('a/b', 'c')",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "httpx.get(url, verify=False)",
        "Environment(loader=loader)",
        "print(os.environ)",
        "log.info('started with %s', os.environ)",
        "f'{os.environ}'",
        "HOST = '0.0.0.0'",
        "def serve(host: str = '::'): ...",
        "tempfile.mktemp()",
    ],
)
def test_rules_see_what_they_are_for(source: str) -> None:
    assert broken_rules(source) != []


@pytest.mark.parametrize(
    "source",
    [
        "YAML(typ='safe').load(text)",
        "torch.load(path, map_location='cpu', weights_only=True)",
        "np.load(path, mmap_mode='r', allow_pickle=False)",
        "subprocess.run(['ls', folder], shell=False)",
        "model.eval()",
        "re.compile(text)",
        "pattern.match(text)",
        "if host in ('0.0.0.0', '::'): host = '127.0.0.1'",
        "log.info('%s', os.environ['HOME'])",
    ],
)
def test_rules_leave_alone_what_is_sound(source: str) -> None:
    assert broken_rules(source) == []


def test_nothing_else_opens_an_address() -> None:
    """Each of these looks at the scheme, or makes the address itself; a new one is a decision."""
    client = re.compile(r"urlopen\(|build_opener\(|\brequests\.(get|post)\(|\bhttpx\.")
    found = {p.relative_to(ROOT).as_posix() for p in SOURCES if client.search(p.read_text(encoding="utf-8"))}
    assert found == {
        "benchmarks/bench_serving.py",
        "pipelines/retrain.py",
        "pipelines/services.py",
        "src/ikddit/evaluation/fid/weights.py",
    }


def test_templates_mark_nothing_as_safe_but_what_the_project_drew() -> None:
    marked = {
        found
        for path in (ROOT / "src").rglob("*.j2")
        for found in re.findall(r"(\S+)\s*\|\s*safe\b", path.read_text(encoding="utf-8"))
    }
    assert marked == {"picture.svg", "w.picture.svg", "s.svg", "style"}


def test_no_tracked_file_holds_a_key() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    key = re.compile(
        "-----BEGIN [A-Z ]*PRIVATE " + r"KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b"
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert len(paths) > 100
    assert [str(p) for p in paths if p.is_file() and key.search(p.read_text(errors="ignore"))] == []


def test_threat_model_names_what_is_there() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tests|src|pipelines|stages)/[\w/.]+|[\w-]+\.txt)`", text))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


# Loopback -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ui", "serve"])
def test_commands_listen_on_loopback_unless_told_otherwise(command: str) -> None:
    from ikddit import cli

    (found,) = [c.callback for c in cli.app.registered_commands if c.name == command]
    assert found is not None
    assert inspect.signature(found).parameters["host"].default == "127.0.0.1"


def test_services_listen_on_loopback_unless_told_otherwise(tmp_path: Path) -> None:
    from pipelines.services import make_services

    (tmp_path / "mlflow.db").touch()  # as if it had been made: nothing is opened
    for service in make_services(tmp_path, {"DVC_ROOT": str(tmp_path)}):
        assert service.host == "127.0.0.1"
        assert service.command[service.command.index("--host") + 1] == "127.0.0.1"
    told = make_services(tmp_path, {"DVC_ROOT": str(tmp_path), "MLFLOW_HOST": "10.0.0.1"})
    assert told[0].host == "10.0.0.1"


# Secrets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://fab:{SECRET}@db:5432/mlflow",
        f"postgresql+psycopg2://fab:a/{SECRET}@db/mlflow",
        f"postgresql://fab:a@{SECRET}@db/mlflow",
        f"postgresql://fab:a#{SECRET}?x@db/mlflow",
        f"postgresql://fab:[{SECRET}@db/mlflow",
        f"postgresql://db/mlflow?user=fab&password={SECRET}",
        f"postgresql://db/mlflow?password=a@{SECRET}",
        f"https://{SECRET}@mlflow.fab",
    ],
)
def test_password_of_an_address_is_never_shown(url: str, tmp_path: Path) -> None:
    assert SECRET not in Store(tmp_path, url, None).public_uri
    assert SECRET not in without_passwords(f"no answer from {url}; try again")
    for error in (IkdditError(f"{url}: no"), InputError(url, "field", url, "remedy"), RegistryError(url)):
        assert SECRET not in str(error) + repr(error)


def test_addresses_without_a_password_stay_readable(tmp_path: Path) -> None:
    assert Store(tmp_path, "https://mlflow.fab/a", None).public_uri == "https://mlflow.fab/a"
    text = "models:/ikddit@champion at https://mlflow.fab:5000/#/a?b=c, me@example.org, sqlite:////srv/a@b/mlflow.db"
    assert without_passwords(text) == text


def test_log_lines_and_their_stack_traces_hold_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project_log, "handlers", [])  # other tests listen with handlers of their own
    configure_logging()
    (handler,) = project_log.handlers
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    before = handler.setStream(written)
    try:
        raise OSError(f"no route to https://me:{SECRET}@mlflow.fab/api")
    except OSError:
        project_log.exception("downloading %s", f"https://me:{SECRET}@mirror/weights.pth")
    finally:
        if before is not None:
            handler.setStream(before)
    assert "https://***@mirror/weights.pth" in written.getvalue()
    assert "OSError: no route to https://***@mlflow.fab/api" in written.getvalue()
    assert SECRET not in written.getvalue()


@pytest.mark.parametrize("scheme", ["http", "https", "HTTPS"])
def test_login_in_the_address_of_a_server_is_refused(scheme: str, tmp_path: Path) -> None:
    env = {"MLFLOW_TRACKING_URI": f"{scheme}://me:{SECRET}@mlflow.fab:5000", "DVC_ROOT": str(tmp_path)}
    for use in (tracking_uri, locate_store):
        with pytest.raises(RegistryError, match="MLFLOW_TRACKING_PASSWORD") as refused:
            use(env)
        assert SECRET not in str(refused.value)


def test_store_that_cannot_be_opened_is_named_without_its_password(tmp_path: Path) -> None:
    """MLflow repeats an address of a scheme that it does not know as it stands."""
    store = Store(tmp_path, f"postgres://fab:{SECRET}@127.0.0.1:1/mlflow", None)
    with pytest.raises(RegistryError, match=r"MLflow store postgres://127\.0\.0\.1:1/mlflow") as failed:
        open_store(store, "overlay")
    assert SECRET not in "".join(traceback.format_exception(failed.value))


def test_password_of_a_database_is_no_argument_of_a_process(tmp_path: Path) -> None:
    """Every user of the machine sees arguments."""
    store = Store(tmp_path, f"postgresql://fab:{SECRET}@db/mlflow", None)
    command, environment = ui_command(store, "127.0.0.1", 5000)
    assert SECRET not in " ".join(command)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == store.uri


def test_webhook_with_a_login_in_its_address_is_a_warning_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.retrain import WEBHOOK, notify

    monkeypatch.setenv(WEBHOOK, f"https://me:{SECRET}@hooks.fab/x")
    said: list[Any] = []
    assert not notify("text", 1.0, said.append)
    assert len(said) == 1
    assert SECRET not in str(said[0])


# Inventory ------------------------------------------------------------------------------------------------


def fake_pip_audit(folder: Path, answer: str) -> list[str]:
    """A program with pip-audit's options that writes an answer, `{name}` in it being the first pin's name."""
    script = folder / "pip_audit.py"
    script.write_text(
        "import sys\n"
        "a = sys.argv\n"
        "name = open(a[a.index('-r') + 1]).read().split('==')[0]\n"
        f"answer = {answer!r}\n"
        "sys.exit('ConnectionError: no route') if not answer else None\n"
        "open(a[a.index('-o') + 1], 'w').write(answer.replace('{name}', name))\n"
    )
    return [sys.executable, str(script)]


def test_audit_without_data_is_not_a_clean_bill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where an index answers 404 to everything, pip-audit skips all, says that nothing is known, and exits with 0."""
    from pipelines.inventory import NOT_ASKED, audit

    skipped = '{"dependencies": [{"name": "{name}", "skip_reason": "not found on PyPI"}]}'
    assert audit(fake_pip_audit(tmp_path, skipped), "pypi") == NOT_ASKED
    assert "NOT DONE" in capsys.readouterr().err
    assert audit(fake_pip_audit(tmp_path, ""), "osv") == NOT_ASKED
    assert "no route" in capsys.readouterr().err


def test_audit_prints_what_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.inventory import FOUND, audit

    vuln = '{"id": "CVE-1", "fix_versions": ["2"]}'
    answer = '{"dependencies": [{"name": "{name}", "version": "1", "vulns": [' + vuln + "]}]}"
    assert audit(fake_pip_audit(tmp_path, answer), "osv") == FOUND
    assert "1: CVE-1, mended in 2" in capsys.readouterr().out


def test_tools_are_pinned_apart_from_the_project() -> None:
    pins = [
        line for line in (ROOT / "constraints-tools.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    names = {pin.partition("==")[0].lower() for pin in pins}
    assert {"pip-audit", "cyclonedx-bom"} <= names
    project = ast.literal_eval(re.search(r"^dependencies = (\[.*?^\])", _pyproject(), re.S | re.M)[1])  # type: ignore[index]
    assert not {"pip-audit", "cyclonedx-bom"} & {re.split(r"[^\w-]", name)[0] for name in project}


def _pyproject() -> str:
    return re.sub(r"\s+#.*", "", (ROOT / "pyproject.toml").read_text())
