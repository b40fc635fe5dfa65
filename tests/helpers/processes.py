"""Run a function in several real processes that form one gloo group, as torchrun would start them.

They fork from a server that has imported torch and Lightning but done nothing with them, so that starting costs no
import. A function is named by its file and name; what it returns comes back in the order of ranks.
"""

import importlib.util
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["torch", "lightning.pytorch", "transformers", "slicefine_pl.callbacks", "torch.distributed.fsdp"]


def run(
    function: Callable[..., Any], processes: int, *args: Any, timeout: float = 120, own_hash_seeds: bool = False
) -> list[Any]:
    """Call ``function(*args)`` in each of ``processes``; a test fails with the first error, or after ``timeout`` s.

    With ``own_hash_seeds`` they are started as separate programs are: sets of strings have another order in each.
    """
    CONTEXT.set_forkserver_preload(PRELOADED)
    context = multiprocessing.get_context("spawn") if own_hash_seeds else CONTEXT
    port = _free_port()
    started, results = [], []
    for rank in range(processes):
        here, there = context.Pipe(duplex=False)
        source = (str(Path(function.__code__.co_filename)), function.__name__)
        process = context.Process(target=_child, args=(there, *source, args, rank, processes, port))
        with pytest.MonkeyPatch.context() as patch:
            if own_hash_seeds:
                patch.setenv("PYTHONHASHSEED", str(rank + 1))
            process.start()
        there.close()
        started.append((process, here))
    try:
        for rank, (_, here) in enumerate(started):
            assert here.poll(timeout), f"process {rank} has not finished within {timeout} s"
            try:
                fine, value = here.recv()
            except EOFError:
                started[rank][0].join(5)
                raise RuntimeError(
                    f"process {rank} died without a word, exit code {started[rank][0].exitcode}"
                ) from None
            assert fine, f"process {rank}:\n{value}"
            results.append(value)
    finally:
        for process, _ in started:
            process.join(5)
            process.kill()
    return results


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _child(pipe: Any, file: str, name: str, args: tuple[Any, ...], rank: int, processes: int, port: int) -> None:
    import torch

    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    place |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({key: str(value) for key, value in place.items()})
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[Path(file).stem] = module
        spec.loader.exec_module(module)
        torch.manual_seed(0)
        pipe.send((True, getattr(module, name)(*args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
