"""A Lightning strategy that trains open slices with FSDP2.

By default it writes one full checkpoint that any strategy can load; with ``save_distributed_checkpoint``, a folder of
shards.

Lightning's ``ModelParallelStrategy`` leaves the sharding to the module, and cannot load a checkpoint while slices are
open.
"""

import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.strategies.fsdp import _move_torchmetrics_to_device
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded_checkpoint
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from slicefine_pl.files.atomic import replace_folder
from slicefine_pl.files.safe_load import check_sharded_checkpoint, load_plain
from slicefine_pl.network.names import NamePatterns
from slicefine_pl.slicing.checkpoint import complete_checkpoint
from slicefine_pl.slicing.distributed.fsdp import shard_model, sharded_bytes
from slicefine_pl.slicing.distributed.saved_activations import count_activations
from slicefine_pl.slicing.distributed.shards import is_sharded, local_slice_of, to_local
from slicefine_pl.slicing.optimizer_state import has_types_of, restore_types


class FullyShardedStrategy(ModelParallelStrategy):
    """Shard weights, slices, gradients and the optimizer's state over all processes, by FSDP2.

    Works with any LightningModule. The module is sharded after its model was built and its slices were opened, before
    its optimizer is built. A module that calls ``shard_sliced_model`` in ``configure_model`` is not sharded again.

    **Checkpoint.** One file with the module's own keys and full tensors, as a single process writes it. Any strategy
    and any number of processes can resume from it. With ``save_distributed_checkpoint`` it is a folder, to which every
    process writes its shards.
    **After fit.** The module stays sharded. Load the checkpoint to get a plain one.
    **Limits.** Data parallelism only. Every process first builds the whole network in CPU memory. A network that
    reads a weight of a block without calling the block gets a sharded tensor, and fails.

    Args:
        blocks: Regular expressions for the modules whose parameters are gathered together. ``None`` finds the layers
            of a deep network, see :func:`slicefine_pl.slicing.distributed.fsdp.find_blocks`.
        offload: Whether shards, gradients and the optimizer's state stay in CPU memory.
        save_distributed_checkpoint: Whether a checkpoint is a folder of shards.
        process_group_backend: ``"nccl"`` or ``"gloo"``; ``None`` takes the default of the device.
        timeout: How long a process waits for another one in a collective.
    """

    def __init__(
        self,
        blocks: str | list[str] | None = None,
        offload: bool = False,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._blocks: NamePatterns | None = blocks
        self._offload = offload
        self._activations_reported = False

    @property
    def saves_shards(self) -> bool:
        """Whether a checkpoint is a folder of shards."""
        return self._save_distributed_checkpoint

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def _get_process_group_backend(self) -> str:
        if self._process_group_backend is None and self._offload and self.root_device.type == "cuda":
            return "cpu:gloo,cuda:nccl"  # the norms of shards on the CPU are summed there
        return super()._get_process_group_backend()

    def setup(self, trainer: Trainer) -> None:
        # Not super().setup(): it requires a module that shards itself.
        assert self.model is not None
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        if not any(is_sharded(parameter) for parameter in self.model.parameters()):
            self.model = self.precision_plugin.convert_module(self.model)
            blocks = shard_model(self.model, self.device_mesh["data_parallel"], self._blocks, self._offload)
            rank_zero_info(f"FullyShardedStrategy: {sharded_bytes(self.model, blocks)}.")
        self.model_to_device()
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if trainer.state.fn == TrainerFn.FITTING and not self._offload:
            _optimizers_to_device(self.optimizers, self.root_device)

    def model_to_device(self) -> None:
        if not self._offload:
            super().model_to_device()
        elif self.model is not None:
            _move_torchmetrics_to_device(self.model, self.root_device)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.train_step_context():
            if self._activations_reported:
                return self._as_forward("training_step", *args, **kwargs)
            with count_activations() as activations:
                result = self._as_forward("training_step", *args, **kwargs)
        self._activations_reported = True
        rank_zero_info(f"FullyShardedStrategy: activations take {activations.bytes / 1e6:,.1f} MB in the first step.")
        return result

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.val_step_context():
            return self._as_forward("validation_step", *args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.test_step_context():
            return self._as_forward("test_step", *args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.predict_step_context():
            return self._as_forward("predict_step", *args, **kwargs)

    def _as_forward(self, step: str, *args: Any, **kwargs: Any) -> Any:
        """Run a step as the module's forward pass, so that FSDP2 gathers the parameters outside blocks."""
        assert self.lightning_module is not None
        return self._forward_redirection(self.lightning_module, self.lightning_module, step, *args, **kwargs)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The full state on rank 0, and nothing on others; with distributed checkpoints, the shards of each process."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        full = tree_map(_full_on_cpu, plain.state_dict())
        return full if self.global_rank == 0 else {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a file, or a folder of shards that replaces an earlier one when it is complete.

        Lightning would write the shards into the earlier folder, so a crash would leave neither checkpoint.
        """
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        target = Path(self.broadcast(filepath))
        new = target.with_name(f".{target.name}.part")
        if self.is_global_zero and new.exists():  # left by a run that was killed
            shutil.rmtree(new)
        self.barrier()
        super().save_checkpoint(checkpoint, new, storage_options)
        self.barrier()
        if self.is_global_zero:
            replace_folder(new, target)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        assert self.lightning_module is not None
        if path.is_dir():
            return self._load_sharded(path, weights_only)
        if weights_only is False:  # the user trusts the file
            checkpoint: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=False)
        else:
            checkpoint = load_plain(path, "ckpt_path", mmap=True)
        complete_checkpoint(checkpoint, self.lightning_module)
        weights = checkpoint.pop("state_dict")
        _load_full(self.lightning_module, weights, self.lightning_module.strict_loading)
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            _load_state(optimizer, state, same_types=has_types_of(self.lightning_module, weights))
        return checkpoint

    def _load_sharded(self, path: Path, weights_only: bool | None) -> dict[str, Any]:
        """Load a folder of shards, which any number of processes may have written."""
        assert self.lightning_module is not None
        if weights_only is not False:
            check_sharded_checkpoint(path, "ckpt_path")
        optimizers, self.optimizers = (
            self.optimizers,
            [],
        )  # their states may lack slices that had just moved; Lightning would fail
        try:
            rest = super().load_checkpoint(path, weights_only)
        finally:
            self.optimizers = optimizers
        saved = FileSystemReader(path).read_metadata().state_dict_metadata
        for number, optimizer in enumerate(optimizers):
            _load_sharded_state(self.lightning_module, optimizer, f"optimizer_{number}", path, list(saved))
        return rest


def _load_full(module: nn.Module, saved: Mapping[str, Tensor], strict: bool) -> None:
    """Load full tensors into a sharded module. Every process takes its shards.

    Raises:
        RuntimeError: Names or shapes differ. Nothing is loaded then.
    """
    own = module.state_dict()
    wrong = [f"{name}: saved {tuple(saved[name].shape)}, here {tuple(value.shape)}" for name, value in own.items()
             if name in saved and saved[name].shape != value.shape]  # fmt: skip
    wrong += [f"{name}: not saved" for name in own.keys() - saved.keys() if strict]
    wrong += [f"{name}: not here" for name in saved.keys() - own.keys() if strict]
    if wrong:
        raise RuntimeError(
            f"Error(s) in loading state_dict for {type(module).__name__}: {'; '.join(sorted(wrong)[:5])}"
        )
    module.load_state_dict({name: _shard_like(saved[name], value) for name, value in own.items() if name in saved},
                           strict=strict)  # fmt: skip


def _load_state(optimizer: Optimizer, saved: Mapping[str, Any], same_types: bool) -> None:
    """Load the full state of an optimizer, which numbers parameters in the order of its groups."""
    order = [number for group in saved["param_groups"] for number in group["params"]]
    own = dict(zip(order, _parameters(optimizer), strict=False))
    states = {
        number: {name: _shard_like(value, own[number]) for name, value in state.items()}
        for number, state in saved["state"].items()
        if number in own
    }
    sharded = {**saved, "state": states}
    optimizer.load_state_dict(sharded)
    if same_types:
        restore_types(optimizer, sharded)


def _load_sharded_state(module: nn.Module, optimizer: Optimizer, key: str, path: Path, saved: list[str]) -> None:
    """Load an optimizer's state from a folder of shards. Parameters whose state was not saved have none.

    Args:
        module: The module whose parameters the optimizer updates.
        optimizer: The optimizer, before its first step.
        key: Key of the state in the folder.
        path: The folder.
        saved: All keys in the folder.
    """
    state: Any = get_optimizer_state_dict(module, optimizer)  # torch creates it by a step with a learning rate of 0
    for name in list(state["state"]):
        if not any(entry.startswith(f"{key}.state.{name}.") for entry in saved):
            del state["state"][name]
    load_sharded_checkpoint({key: state}, checkpoint_id=path)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    own = optimizer.state_dict()
    states = enumerate(state["state"].get(names[id(parameter)]) for parameter in _parameters(optimizer))
    groups = [
        {**loaded, "params": group["params"]}
        for group, loaded in zip(own["param_groups"], state["param_groups"], strict=True)
    ]
    loaded = {"state": {number: each for number, each in states if each is not None}, "param_groups": groups}
    optimizer.load_state_dict(loaded)
    restore_types(optimizer, loaded)  # shards were read into tensors of this optimizer's types


def _shard_like(value: Any, like: Tensor) -> Any:
    """Shard a full tensor like the parameter ``like``; other values, and scalars, stay as they are."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if value.shape != like.shape:
        raise ValueError(
            f"The optimizer keeps a tensor of shape {tuple(value.shape)} for a parameter of shape {tuple(like.shape)}"
            " (as Adafactor does), which cannot be sharded like the parameter; resume with strategy='ddp'."
        )
    local = local_slice_of(value, like).to(to_local(like).device)
    return DTensor.from_local(local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def _full_on_cpu(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if isinstance(value, DTensor):
        value = cast("DTensor", value.to(value.device_mesh.device_type)).full_tensor()
    return value.cpu()


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
