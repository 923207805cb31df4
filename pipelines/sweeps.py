"""What the sweeps are: `pipelines/ablations.yaml`, read, checked and spelled out run by run."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ikddit.errors import ParamsError
from ikddit.params import Params, parse_params

DEFINITIONS = Path(__file__).with_name("ablations.yaml")
Scalar = bool | int | float | str


class Checked(BaseModel):
    """Frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PaperRow(Checked):
    """The paper's own figures along the sweep's x axis."""

    name: str
    source: str
    values: dict[float, float]


class Sweep(Checked):
    """One table: all combinations of the axes on top of a profile."""

    title: str
    profile: str
    axes: dict[str, list[Scalar]]
    """Key of params.yaml -> its values; the first axis changes slowest."""
    x: str
    """The axis along which the figure is drawn."""
    lines: str | None = None
    """The axis of which each value is a line."""
    leave_out: list[str] = []
    """Metrics that cannot be compared between these runs."""
    paper: PaperRow | None = None


class Definitions(Checked):
    """The whole of ablations.yaml."""

    profiles: dict[str, dict[str, Scalar]]
    sweeps: dict[str, Sweep]


@dataclass(frozen=True)
class Run:
    """One experiment of a sweep."""

    name: str
    """Of the DVC experiment: sweep, values of the axes, and a digest of everything that is set."""
    cell: dict[str, Scalar]
    """The axes' values."""
    settings: dict[str, Scalar]
    """Everything that differs from params.yaml, the cell included."""

    def arguments(self) -> list[str]:
        """For `dvc exp run`: one `-S key=value` for each setting.

        >>> Run("n", {}, {"mask_ratio": 0.5, "train.dense_path": False}).arguments()
        ['-S', 'mask_ratio=0.5', '-S', 'train.dense_path=false']
        """
        return [word for key, value in self.settings.items() for word in ("-S", f"{key}={spelled(value)}")]


def spelled(value: Scalar) -> str:
    """As on a command line of DVC.

    >>> spelled(True), spelled(0.25), spelled("none")
    ('true', '0.25', 'none')
    """
    return value if isinstance(value, str) else json.dumps(value)


def read_definitions(path: Path = DEFINITIONS) -> Definitions:
    """Read and check the sweeps.

    Raises:
        ParamsError: the file cannot be read, or a sweep names an axis or profile that is not there.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = Definitions.model_validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
    except (OSError, YAMLError) as error:
        raise ParamsError(f"{path.name}: not readable: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ParamsError(f"{path.name}: {where}: {first['msg']}") from None
    for name, sweep in found.sweeps.items():
        if sweep.profile not in found.profiles:
            raise ParamsError(f"{path.name}: sweeps.{name}: no profile `{sweep.profile}`")
        for axis in (sweep.x, sweep.lines or sweep.x):
            if axis not in sweep.axes:
                raise ParamsError(f"{path.name}: sweeps.{name}: `{axis}` is none of its axes")
    return found


def expand(name: str, definitions: Definitions, params: Mapping[str, Any]) -> list[Run]:
    """Spell out a sweep as its runs, each checked against the schema of params.yaml.

    Args:
        name: of the sweep.
        definitions: from `read_definitions`.
        params: the settings of params.yaml, in which those of a run are put and checked.

    Raises:
        ParamsError: no such sweep, or a run's settings are refused; the run is named.
    """
    if name not in definitions.sweeps:
        raise ParamsError(f"no sweep `{name}`; known: {', '.join(definitions.sweeps)}")
    sweep = definitions.sweeps[name]
    registry: dict[str, Scalar] = {"register.version": False, "register.sweep": name}
    runs = []
    for values in itertools.product(*sweep.axes.values()):
        cell = dict(zip(sweep.axes, values, strict=True))
        settings = definitions.profiles[sweep.profile] | registry | cell
        label = "-".join([name, *(re.sub(r"[^\w.]+", "-", spelled(v)) for v in values)])
        checked(params, settings, label)
        runs.append(Run(f"{label}-{_digest(settings)}", cell, settings))
    return runs


def checked(params: Mapping[str, Any], settings: Mapping[str, Scalar], label: str) -> Params:
    """Params with the settings put in.

    Raises:
        ParamsError: a key is unknown or a value out of range.
    """
    values = json.loads(json.dumps(params))
    for key, value in settings.items():
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return parse_params(values, label)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:6]
