"""Checks before any work is done: the given checkpoint, and the output folder."""

import inspect
import pickletools
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicefine_pl.files.safe_load import load_plain


def check_checkpoint(path: Path) -> None:
    """Check that a file is a complete Lightning checkpoint, without loading it.

    Args:
        path: The file, or the folder of a sharded checkpoint.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is truncated, damaged, or not a checkpoint.
    """
    if path.is_dir():
        if (path / "meta.pt").is_file():
            return  # a sharded checkpoint
        raise ValueError(f"ckpt_path={str(path)!r} is a folder; give a .ckpt file in it, such as last.ckpt.")
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path={str(path)!r} does not exist; give a .ckpt file that a fit has written.")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"ckpt_path={str(path)!r} is truncated or not a checkpoint ({path.stat().st_size:,} bytes, not a complete "
            "archive); give another one, such as the last or the best of that run."
        )
    damaged = f"ckpt_path={str(path)!r} is damaged{{}}; give another one, such as the last or the best of that run."
    with zipfile.ZipFile(path) as archive:
        try:
            if bad := archive.testzip():
                raise ValueError(damaged.format(f" (the checksum of its entry {bad!r} is wrong)"))
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            words = {word for name in pickles for _, word, _ in pickletools.genops(archive.read(name))}  # runs nothing
        except zipfile.BadZipFile as error:
            raise ValueError(damaged.format(f" ({error})")) from error
    if not {"pytorch-lightning_version", "state_dict"} <= words:
        raise ValueError(
            f"ckpt_path={str(path)!r} is not a checkpoint of Lightning; give a .ckpt file that a fit has written, or a "
            "folder of a model and its tokenizer as --model.backbone."
        )


def check_module_class(path: Path, module_class: Callable[..., Any]) -> None:
    """Check that a checkpoint was written by a module of this class.

    Args:
        path: Checkpoint that passed ``check_checkpoint``.
        module_class: Class of the module that will load it.

    Raises:
        ValueError: A module of another class wrote it.
    """
    checkpoint = {} if path.is_dir() else load_plain(path, "ckpt_path", mmap=True)
    writer = checkpoint.get("module")
    # Modules of other packages write no name.
    foreign = checkpoint.get("hyper_parameters", {}).keys() - inspect.signature(module_class).parameters.keys()
    foreign = {name for name in foreign if not name.startswith("_")}  # _instantiator and others of Lightning
    if writer is None and foreign:
        writer = f"another module class, with the setting {min(foreign)!r}"
    if writer not in (None, module_class.__name__):
        raise ValueError(
            f"ckpt_path={str(path)!r} was written by {writer}, and this recipe trains {module_class.__name__}; give a "
            "checkpoint of this recipe."
        )


def check_output_folder(folder: Path, needed: int, setting: str) -> None:
    """Check that an output folder can be written, and that its disk has enough space.

    Args:
        folder: Folder that the run will write to; need not exist.
        needed: Space that the run needs, in bytes.
        setting: The flag that chooses the folder, for the message.

    Raises:
        OSError: The folder cannot be written, or the disk is nearly full.
    """
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=place):
            pass
    except OSError as error:
        raise OSError(
            f"output folder {str(folder)!r} cannot be written ({error.strerror}); set {setting} to a writable folder."
        ) from error
    if (free := shutil.disk_usage(place).free) < needed:
        raise OSError(
            f"output folder {str(folder)!r} has {free / 1e6:,.0f} MB free, and the run needs about "
            f"{needed / 1e6:,.0f} MB; free some space or choose another folder."
        )
