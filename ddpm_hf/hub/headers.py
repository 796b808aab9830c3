"""Headers of safetensors files: names, types and shapes of the weights, read before anything is allocated."""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from ddpm_hf.reading import MEGABYTE, open_regular, parse_json

LARGEST_HEADER = 16 * MEGABYTE
ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes, of the types that weights may have


@dataclass(frozen=True)
class Weight:
    """A tensor in a file. dtype: as safetensors calls it, such as F32."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Weight]:
    """The tensors in a safetensors file, by their names.

    Raises:
        ValueError: if it is no such file, or not a whole one.
        OSError: if it cannot be read.
    """
    try:
        with open_regular(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))  # then JSON of that many bytes, then the values
            if length > LARGEST_HEADER:
                raise ValueError("the header is too large")
            tensors = parse_json(file.read(length).decode("utf-8"))
            end = file.seek(0, os.SEEK_END)
        tensors.pop("__metadata__", None)
        if not all(type(side) is int and side >= 0 for entry in tensors.values() for side in entry["shape"]):
            raise ValueError("a shape holds something else than sizes")
        if end != 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0):
            raise ValueError("the values are cut")
        return {name: Weight(str(entry["dtype"]), tuple(entry["shape"])) for name, entry in tensors.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path.name} is not a safetensors file, or not a whole one") from error
