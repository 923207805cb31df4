"""Several processes that train one model: each takes a share of the batch, gradients and curves are summed.

Started by `torchrun`, through gloo between CPUs and NCCL between GPUs. All that is random derives from
(seed, step), so every process draws the whole step and takes its rows; a run with N processes has the loss
curve of a run with one, up to the order of sums.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from ikddit.errors import TrainingError

log = logging.getLogger("ikddit")


@dataclass(frozen=True)
class Workers:
    """This process among those that train together; by default the only one."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Number on its machine: the GPU that this process uses."""

    @property
    def main(self) -> bool:
        """True for the one process that writes files and reports progress."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """This process's rows of the step's batch; all rows together are the batch.

        Raises:
            TrainingError: there are fewer rows than processes.

        >>> [Workers(rank, 3).rows(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        if batch < self.count:
            raise TrainingError(
                f"a batch of {batch} wafers for {self.count} processes; raise train.batch or start fewer"
            )
        return slice(batch * self.rank // self.count, batch * (self.rank + 1) // self.count)

    def share(self, batch: int) -> float:
        """This process's part of the batch: what its means count for in the mean over the whole batch."""
        rows = self.rows(batch)
        return float(rows.stop - rows.start) / batch

    def sum_gradients(self, module: nn.Module) -> None:
        """Sum the gradients of all processes, in one flat message per type.

        Losses are scaled by `share` before they are differentiated, so that the sum is the gradient of the mean
        over the whole batch.
        """
        self._sum([p.grad for p in module.parameters() if p.grad is not None])

    def mean_statistics(self, statistics: list[Tensor], share: float) -> None:
        """Replace running statistics, which each process moved by its own rows, by their mean over the whole batch."""
        if self.count == 1:
            return
        for values in statistics:
            values.mul_(share)
        self._sum(statistics)

    def mean(self, values: Float[Tensor, " N"], share: float) -> Float[Tensor, " N"]:
        """Mean over the whole batch of per-process means."""
        if self.count == 1:
            return values
        values = values * share
        dist.all_reduce(values)
        return values

    def share_weights(self, module: nn.Module) -> None:
        """Give every process the parameters and buffers of rank 0."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                if tensor.numel():  # a model without residual modes has a buffer of none
                    dist.broadcast(tensor, src=0)

    def agree(self, number: int, what: str, device: torch.device) -> None:
        """Check that all processes hold the same number.

        Raises:
            TrainingError: they do not, for example where checkpoints lie in a folder that not all of them see.
        """
        if self.count == 1:
            return
        extremes = torch.tensor([number, -number], device=device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        high, low = int(extremes[0]), -int(extremes[1])
        if high != low:
            raise TrainingError(
                f"the processes disagree on {what}: {low} to {high}, here {number}; they must share one folder of "
                "checkpoints, or start without one"
            )

    def _sum(self, tensors: list[Tensor]) -> None:
        if self.count == 1:
            return
        for dtype in sorted({t.dtype for t in tensors}, key=str):
            part = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.flatten() for t in part])
            dist.all_reduce(flat)
            pieces = [
                p.view_as(t) for p, t in zip(torch.split(flat, [t.numel() for t in part]), part, strict=True)
            ]
            torch._foreach_copy_(part, pieces)


ALONE = Workers()


@contextmanager
def join_workers(device: str, env: Mapping[str, str] = os.environ) -> Iterator[Workers]:
    """Join the processes that `torchrun` started; without `torchrun`, this process is alone.

    Args:
        device: `train.device`; NCCL where GPUs are used, else gloo.
        env: where torchrun leaves RANK, WORLD_SIZE, LOCAL_RANK and the address of the meeting point.

    Raises:
        TrainingError: there are more processes than GPUs on this machine.
    """
    count = int(env.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    workers = Workers(int(env["RANK"]), count, int(env.get("LOCAL_RANK", "0")))
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        if workers.local_rank >= torch.cuda.device_count():
            raise TrainingError(
                f"process {workers.local_rank} of this machine has no GPU of its own ({torch.cuda.device_count()} "
                "seen); lower --nproc-per-node"
            )
        torch.cuda.set_device(workers.local_rank)
    dist.init_process_group("nccl" if gpu else "gloo")
    if not workers.main:
        log.setLevel(logging.WARNING)  # one process speaks for all
    log.info("training with %d processes", count)
    yield workers
    # not after an error: the others may be waiting for this process, and torchrun ends them when it is gone
    dist.destroy_process_group()
