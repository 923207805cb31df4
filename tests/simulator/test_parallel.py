"""Lots spread over processes: what a worker's death means is said in words."""

import os
import signal

import pytest

from ikddit.errors import IkdditError
from ikddit.params import SimulateParams
from ikddit.simulator.constants import Fab
from ikddit.simulator.parallel import map_lots


def die(fab: Fab, params: SimulateParams, item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told_of_with_the_way_out() -> None:
    with pytest.raises(IkdditError, match="one of 2 worker processes died; if memory ran out"):
        list(map_lots(die, SimulateParams(lots=2), [0, 1], workers=2))
