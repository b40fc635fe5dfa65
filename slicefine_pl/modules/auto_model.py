"""Load networks of transformers with its Auto classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging


class LoadedModel(NamedTuple):
    """A network of transformers.

    Attributes:
        model: The network, in train mode.
        new_head: Whether weights were missing or had other shapes, so that the head is new and random.
        random_weights: Whether all weights are random.
    """

    model: PreTrainedModel
    new_head: bool
    random_weights: bool


def load_config(place: str) -> Any:
    """Load the config of a network from a hub name or folder."""
    with silence_transformers():
        return AutoConfig.from_pretrained(place)


def load_auto_model(
    auto_class: Any,
    place: str,
    config: Any = None,
    *,
    random_weights: bool,
    ignore_mismatched_sizes: bool = True,
    **settings: Any,
) -> LoadedModel:
    """Load a network with an Auto class.

    Args:
        auto_class: One of the Auto classes, e.g. ``AutoModelForCausalLM``.
        place: Hub name or folder.
        config: Config of the network; ``None`` loads it from ``place``.
        random_weights: Whether to build the network without loading weights.
        ignore_mismatched_sizes: Whether a head of another size is replaced by a new one. Otherwise it is an error.
        settings: Further arguments of ``from_pretrained`` or ``from_config``, e.g. ``dtype``.
    """
    with silence_transformers():
        if random_weights:
            config = load_config(place) if config is None else config
            return LoadedModel(auto_class.from_config(config, **settings).train(), True, True)
        model, report = auto_class.from_pretrained(
            place,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            **settings,
        )
    return LoadedModel(model.train(), bool(report["missing_keys"] or report["mismatched_keys"]), False)


@contextmanager
def loading_errors(backbone: str, remedy: str) -> Iterator[None]:
    """Turn the errors of loading a network into one ValueError.

    Args:
        backbone: The backbone as the user wrote it.
        remedy: What to give instead.

    Raises:
        ValueError: The network cannot be loaded. The message contains both arguments and the reason.
    """
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"backbone={backbone!r} could not be loaded ({reason}); {remedy}.") from error


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Suppress log messages and progress bars of transformers. The modules report what matters themselves."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
