"""Record the operations of a training step once, and repeat them on the same memory without running Python again.

On a GPU that is a CUDA graph. A CPU has none, so :class:`Tape` does the same there, one operation at a time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def record(step: Callable[[], None], device: str) -> Callable[[], None]:
    """Run a step once, and return a function that repeats its operations.

    Args:
        step: The step, which has run several times before.
        device: ``"cuda"`` or ``"cpu"``.
    """
    if device != "cuda":
        with Tape() as tape:
            step()
        repeat: Callable[[], None] = tape.replay
        return repeat
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()  # while it is captured, nothing is computed
    return graph.replay


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations with the tensors that they read and write.

    As in a CUDA graph, whatever Python decides while it records stays as it is: which operations run, on which memory,
    and with which numbers. What lies in a tensor is read anew at each replay.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace != "aten":
            return result  # the profiler's marks
        if any(not isinstance(each, Tensor) and each is not None for each in tree_leaves(result)):
            raise RuntimeError(f"{func} returns a number to Python, which a CUDA graph cannot.")
        self._calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Run all operations again; each result goes to the memory that the recorded one has."""
        for func, args, kwargs, recorded in self._calls:
            result = func(*args, **kwargs)
            for old, new in zip(tree_leaves(recorded), tree_leaves(result), strict=True):
                if isinstance(new, Tensor) and new.data_ptr() != old.data_ptr():  # else it was in place, or a view
                    old.copy_(new)
