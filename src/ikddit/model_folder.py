"""The folder of a network: config.json and model.safetensors, which nothing unpickles."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ikddit.atomic import read_json, write_json
from ikddit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
Network = TypeVar("Network", bound="nn.Module")


def write_network(config: Any, state: Mapping[str, "Tensor"], folder: Path) -> None:
    """Write both files into an existing folder.

    Args:
        config: a dataclass, or a mapping of what JSON can hold.
        state: tensors by name, on any device.
        folder: that a caller makes appear as a whole (`ikddit.atomic.atomic_dir`).
    """
    from safetensors.torch import save_file

    write_json(folder / CONFIG, config if isinstance(config, Mapping) else asdict(config))
    save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, folder / WEIGHTS)


def read_network(folder: Path, build: Callable[[dict[str, Any]], Network], what: str, remedy: str) -> Network:
    """Build a network from its config and give it its weights; ready for use, not for training.

    Args:
        folder: from `write_network`.
        build: makes the network from what config.json holds.
        what: the network is, and `remedy`: the way out, for the error.

    Raises:
        ModelError: a file is missing, damaged, or does not fit the code.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network = build(read_json(folder / CONFIG))
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (
        OSError,
        LookupError,
        ArithmeticError,
        TypeError,
        ValueError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise ModelError(f"{folder}: not a usable {what} ({error}); {remedy}") from error
    return network.eval()
