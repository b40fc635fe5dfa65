"""Turn texts into token sequences, cached on disk, and token sequences into padded batches.

Shapes:  N texts · B batch · T tokens
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AddedToken, AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from slicefine_pl.data.cache import cache_folder, read_checked, write_checked
from slicefine_pl.inputs import TextInput, stored_input
from slicefine_pl.pretrained import locate, split_gguf

LAYOUT = b"2"  # version of the cache files; files of other versions are not read
# Settings that say where a tokenizer was loaded from
SOURCE_SETTINGS = {"name_or_path", "files_loaded", "is_local", "local_files_only", "init_inputs"}
UNLIMITED = 10**6  # tokenizers without a limit return a huge number


class TextTokenizer:
    """Turn texts into token sequences with the tokenizer of a pretrained model.

    **Cache.** Results are stored in the cache folder. The key is a hash of the texts, the length, all settings and
    files of the tokenizer, and the versions of its libraries. A damaged file is made again, with a warning.
    **Long texts** are cut to ``max_length`` tokens. One warning counts them.

    Args:
        tokenizer: Hub name, local folder, or ``"package:<package>/<folder>"``.
        max_length: Longest sequence, in tokens with the special ones. ``None`` means the length an export was trained
            with, else what the model allows.

    Attributes:
        tokenizer: The tokenizer of transformers.
        limit: Longest sequence that tokenizer and model allow, in tokens.
        max_length: Longest sequence that is returned, in tokens.
        pad: Token that fills up short sequences.

    Raises:
        ValueError: The tokenizer cannot be loaded, or ``max_length`` is out of range.
    """

    def __init__(self, tokenizer: str, max_length: int | None) -> None:
        folder, gguf = split_gguf(locate(tokenizer))
        try:
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"tokenizer={tokenizer!r} could not be loaded ({' '.join(str(error).split())}); "
                "give the hub name or the folder of a model with its tokenizer."
            ) from error
        config = AutoConfig.from_pretrained(folder, gguf_file=gguf)
        trained = stored_input(tokenizer, TextInput) or TextInput()  # an exported tokenizer is limited to max_length
        self.limit = trained.limit or _limit(self.tokenizer, config)
        if max_length is not None and not 2 < max_length <= self.limit:
            raise ValueError(f"max_length={max_length} is out of range; {tokenizer!r} allows 3 to {self.limit} tokens.")
        self.max_length = max_length or trained.max_length or self.limit
        self.pad = self.tokenizer.pad_token_id or 0
        self._fingerprint = _fingerprint(self.tokenizer)  # before any call: calls change the settings of a tokenizer

    def encode(self, columns: Sequence[Sequence[str]]) -> dict[str, list[list[int]]]:
        """Tokenize texts, or pairs of texts.

        Args:
            columns: One list of N texts, or two for pairs.

        Returns:
            ``input_ids``, and ``token_type_ids`` for pairs if the tokenizer has them: N sequences each.
        """
        encoded = self._cached(f"{self.max_length}|{len(columns)}", columns, lambda: self._tokenize(columns))
        self._warn_if_cut(encoded.pop("lengths")[0])
        return encoded

    def encode_bare(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize whole texts without special tokens. The result is cached too."""

        def tokenize() -> dict[str, list[list[int]]]:
            return {"input_ids": self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]}

        return self._cached("bare", [texts], tokenize)["input_ids"]

    def _cached(
        self, settings: str, columns: Sequence[Sequence[str]], tokenize: Callable[[], dict[str, list[list[int]]]]
    ) -> dict[str, list[list[int]]]:
        key = hashlib.sha256(LAYOUT + self._fingerprint + settings.encode() + b"\0")
        for column in columns:
            for text in column:
                content = text.encode()
                key.update(len(content).to_bytes(8, "big") + content)
        path = cache_folder() / "tokens" / f"{key.hexdigest()}.npz"
        if (cached := read_checked(path)) is not None:
            return _from_bytes(cached)
        encoded = tokenize()
        try:
            write_checked(path, _to_bytes(encoded))
        except OSError as error:
            rank_zero_warn(
                f"Tokens cannot be cached in {str(path.parent)!r} ({error.strerror}); continuing without a cache."
            )
        return encoded

    def _tokenize(self, columns: Sequence[Sequence[str]]) -> dict[str, list[list[int]]]:
        names = ["input_ids"]
        encoded = self.tokenizer(*map(list, columns), verbose=False)
        if len(columns) == 2 and "token_type_ids" in encoded:
            names.append("token_type_ids")
        packed: dict[str, list[list[int]]] = {name: encoded[name] for name in names}
        lengths = [len(ids) for ids in packed["input_ids"]]
        if long := [row for row, length in enumerate(lengths) if length > self.max_length]:
            texts = [[column[row] for row in long] for column in columns]
            cut = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
            for name in names:
                for row, sequence in zip(long, cut[name], strict=True):
                    packed[name][row] = sequence
        return {**packed, "lengths": [lengths]}

    def _warn_if_cut(self, lengths: Sequence[int]) -> None:
        if long := [length for length in lengths if length > self.max_length]:
            rank_zero_warn(
                f"{len(long)} of {len(lengths)} texts are longer than max_length={self.max_length} tokens (the longest "
                f"has {max(long)}) and were cut; raise max_length, or shorten them."
            )


class TokenDataset(Dataset[dict[str, Any]]):
    """Token sequences by index, with labels if there are any.

    Args:
        encoded: N token sequences for each input of the model, by its name.
        labels: N class indices or values, or ``None``.
    """

    def __init__(self, encoded: Mapping[str, list[list[int]]], labels: Sequence[int] | Sequence[float] | None) -> None:
        self._encoded = encoded
        self._labels = labels
        self.lengths = [len(ids) for ids in encoded["input_ids"]]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the token sequences of one text as lists, and its label."""
        item: dict[str, Any] = {name: sequences[index] for name, sequences in self._encoded.items()}
        if self._labels is not None:
            item["labels"] = self._labels[index]
        return item


class TextCollator:
    """Pad the examples of a batch to the longest one, on the right.

    Args:
        pad: Token that fills up ``input_ids``.
    """

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask``, ``token_type_ids`` (shape ``(B, T)``), ``labels`` (``(B,)``)."""
        lengths = [len(item["input_ids"]) for item in items]
        batch = {"attention_mask": pad_sequences([[1] * length for length in lengths], 0)}
        for name in items[0]:
            if name == "labels":
                batch[name] = torch.tensor([item[name] for item in items])
            else:
                batch[name] = pad_sequences([item[name] for item in items], self.pad if name == "input_ids" else 0)
        return batch


def pad_sequences(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return lists of any length as one int64 tensor of shape ``(B, T)``, filled up with ``value`` on the right."""
    longest = max(map(len, sequences))
    return torch.tensor([[*sequence, *[value] * (longest - len(sequence))] for sequence in sequences])


def _limit(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    """Return the longest sequence that both tokenizer and model allow, in tokens."""
    positions = getattr(config, "max_position_embeddings", None)
    return min(tokenizer.model_max_length, positions or UNLIMITED)


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Return a digest of everything that can change the output of a tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    versions = f"{transformers.__version__} {tokenizers.__version__} {type(tokenizer).__qualname__}"
    rules = str(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    parts = [versions.encode(), rules.encode(), repr(_plain(vars(tokenizer))).encode()]
    settings = tokenizer.init_kwargs | vars(tokenizer)
    files = (settings.get(name) for name in sorted(tokenizer.vocab_files_names))
    parts += [Path(file).read_bytes() for file in files if file and Path(file).is_file()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _plain(value: Any) -> Any:
    """Return the settings within ``value`` in a fixed order. Other objects become the name of their type."""
    if isinstance(value, dict):
        return sorted((str(key), _plain(item)) for key, item in value.items() if key not in SOURCE_SETTINGS)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(_plain(item)) for item in value)
    if isinstance(value, str | int | float | None):
        return value
    return repr(value) if isinstance(value, AddedToken) else type(value).__qualname__


def _to_bytes(encoded: Mapping[str, list[list[int]]]) -> bytes:
    """Store each list of sequences as one flat array and the length of each sequence."""
    arrays: dict[str, Any] = {}
    for name, sequences in encoded.items():
        arrays[name] = np.fromiter((token for sequence in sequences for token in sequence), np.int32)
        arrays[f"{name}_sizes"] = np.array([len(sequence) for sequence in sequences], np.int32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _from_bytes(content: bytes) -> dict[str, list[list[int]]]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        names = [name for name in arrays.files if not name.endswith("_sizes")]
        return {
            name: [part.tolist() for part in np.split(arrays[name], np.cumsum(arrays[f"{name}_sizes"])[:-1])]
            for name in names
        }
