"""A training step recorded once as a CUDA graph and replayed: thousands of small kernels then cost one launch."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ikddit.embedding.encoders import ConditionTokens
from ikddit.errors import TrainingError
from ikddit.training.objective import TrainingBatch

Update = Callable[[TrainingBatch, Tensor, Tensor], dict[str, Tensor]]
"""(batch, learning rate, decay of the average) -> curve values; changes weights, optimisers and averages in place."""
Kind = tuple[bool, bool, bool]
"""What changes the kernels of a step: masked, some rows without the deep path, all tokens with pixels."""
PLAIN_STEPS = 3
"""Steps of each kind that are run as they are: what is set up once must not be recorded."""


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    names: list[str]
    outputs: Tensor


class RecordedStep:
    """Runs `update` on batches of one size; records it for every kind of batch and then replays it.

    Everything that differs from step to step goes in through tensors that stay where they are: the batch, the
    learning rate and the decay. So `update` must read no tensor's value on the host and keep its weights in place.

    Args:
        update: what is recorded.
        device: the GPU.
    """

    def __init__(self, update: Update, device: torch.device) -> None:
        self.rate = torch.zeros((), device=device)
        self.decay = torch.zeros((), device=device)
        self._update = update
        self._plain: dict[Kind, int] = {}
        self._recorded: dict[Kind, _Recording] = {}

    @property
    def kinds(self) -> list[Kind]:
        """Kinds of batch of which there is a recording, in the order in which they were met."""
        return list(self._recorded)

    def run(self, batch: TrainingBatch, rate: float, decay: float) -> dict[str, Tensor]:
        """One step; the values stay on the GPU and are the caller's own.

        Args:
            batch: must say whether it is `whole`: to look would make the GPU wait, which cannot be recorded.
            rate: learning rate.
            decay: of the average of the weights.

        Raises:
            TrainingError: torch cannot record the step.
        """
        assert batch.whole is not None
        self.rate.fill_(rate)
        self.decay.fill_(decay)
        kind = (batch.visible is not None, batch.path_drop is not None, batch.whole)
        if self._plain.setdefault(kind, 0) < PLAIN_STEPS:
            self._plain[kind] += 1
            return self._beside(batch)
        if kind not in self._recorded:
            self._recorded[kind] = self._record(batch)
        recording = self._recorded[kind]
        torch._foreach_copy_(recording.inputs, tensors_of(batch))
        recording.graph.replay()
        # the next replay overwrites its outputs
        return dict(zip(recording.names, recording.outputs.clone().unbind(), strict=True))

    def _beside(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """A step as it is, on a stream of its own, as recording needs it to be warmed up."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            values = self._update(batch, self.rate, self.decay)
        torch.cuda.current_stream().wait_stream(stream)
        return values

    def _record(self, batch: TrainingBatch) -> _Recording:
        static = with_tensors(batch, [tensor.clone() for tensor in tensors_of(batch)])
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                values = self._update(static, self.rate, self.decay)
                outputs = torch.stack([value.float() for value in values.values()])
        except RuntimeError as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise TrainingError(
                f"the training step cannot be recorded as a CUDA graph ({reason}); set train.cuda_graph: false"
            ) from error
        return _Recording(graph, tensors_of(static), list(values), outputs)


def tensors_of(batch: TrainingBatch) -> list[Tensor]:
    """The tensors of a batch, in a fixed order."""
    found: list[Tensor] = []
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, ConditionTokens):
            found += value.parts
        elif isinstance(value, Tensor):
            found.append(value)
    return found


def with_tensors(batch: TrainingBatch, tensors: list[Tensor]) -> TrainingBatch:
    """The same batch with other tensors, in the order of `tensors_of`."""
    left = iter(tensors)

    def replaced(value: object) -> object:
        if isinstance(value, ConditionTokens):
            return ConditionTokens(*(next(left) for _ in value.parts))
        return next(left) if isinstance(value, Tensor) else value

    return TrainingBatch(**{f.name: replaced(getattr(batch, f.name)) for f in fields(batch)})  # type: ignore[arg-type]
