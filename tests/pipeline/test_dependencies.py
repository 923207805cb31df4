"""dvc.yaml must name the code a stage runs, or `dvc repro` calls a stale result up to date."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest
from checkouts import ROOT
from ruamel.yaml import YAML

STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
NAMES = "errors storage atomic console checkout params vision manifest model_folder device orphans cli"
PLUMBING = {"ikddit", *(f"ikddit.{name}" for name in NAMES.split())}
"""No stage depends on these: they hold no science, and params.yaml is tracked key by key."""


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("ikddit", cache_dir=None)


def named_in(script: Path, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from {node.module, *(f"{node.module}.{name.name}" for name in node.names)} & modules
        elif isinstance(node, ast.Import):
            yield from {name.name for name in node.names} & modules


def used_modules(script: Path, graph: grimp.ImportGraph) -> set[str]:
    todo, seen = set(named_in(script, graph.modules)), set()
    while todo:
        module = todo.pop()
        if module not in PLUMBING and module not in seen:
            seen.add(module)
            todo |= graph.find_modules_directly_imported_by(module)
    return seen


@pytest.mark.parametrize("stage", [name for name in STAGES if not STAGES[name].get("always_changed")])
def test_stage_depends_on_all_the_code_it_runs(stage: str, imports: grimp.ImportGraph) -> None:
    deps = [Path(dep) for dep in STAGES[stage]["deps"]]
    modules = used_modules(ROOT / "stages" / f"{stage}.py", imports)
    files = [Path("src", *module.split(".")).with_suffix(".py") for module in sorted(modules)]
    forgotten = [
        str(path)
        for path in files
        if (ROOT / path).is_file() and not any(dep in (path, *path.parents) for dep in deps)
    ]
    assert forgotten == []


@pytest.mark.parametrize("stage", STAGES)
def test_stage_names_no_dependency_that_is_not_there(stage: str) -> None:
    code = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("src/", "stages/"))]
    assert [dep for dep in code if not (ROOT / dep).exists()] == []


def test_the_picture_of_the_house_shows_every_stage_and_every_room() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text()
    shown = {
        word
        for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture)
        for word in re.findall(r"\w+", text)
    }
    rooms = {path.name for path in (ROOT / "src" / "ikddit").iterdir() if (path / "__init__.py").is_file()}
    assert set(STAGES) | rooms <= shown
