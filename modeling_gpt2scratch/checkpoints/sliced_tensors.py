"""Tensors that several ranks hold in slices, and the safetensors files of such slices.

Each rank writes a file of what it holds, with the shape of the whole tensor and the slice's offset
in the file's metadata. A reader asks for any other slice and gets it from whichever files have
parts of it, and reads no more of them. A file without that metadata has whole tensors.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from modeling_gpt2scratch.common.errors import named

from .weight_files import WeightsError, open_tensors

SLICES_KEY = "slices"  # in a file's metadata: JSON of name -> {"shape": ..., "offset": ...}


def own_slice(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """What this rank holds of a tensor, and where that begins in the whole one.

    A tensor that is no DTensor is whole on every rank.
    """
    if not isinstance(tensor, DTensor):
        return tensor, (0,) * tensor.dim()
    (chunk,) = tensor.__create_chunk_list__()  # torch's protocol for checkpoints
    return tensor.to_local(), tuple(chunk.offsets)


def is_first_copy(tensor: Tensor) -> bool:
    """Whether no rank before this one holds the same slice."""
    if not isinstance(tensor, DTensor):
        return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    coordinate = tensor.device_mesh.get_coordinate()
    return all(
        position == 0
        for position, placement in zip(coordinate, tensor.placements, strict=True)
        if placement.is_replicate()
    )


def write_slices(path: Path, tensors: dict[str, Tensor], slices: dict[str, dict] | None) -> None:
    """One file of slices, or of whole tensors if `slices` is None.

    Args:
        tensors: on the CPU, contiguous.
        slices: for each name the `shape` of the whole tensor and the `offset` of the slice.
    """
    text = json.dumps(slices, sort_keys=True)
    save_file(tensors, path, metadata=None if slices is None else {SLICES_KEY: text})


@dataclass(frozen=True)
class StoredSlice:
    """A part of a tensor in one file."""

    path: Path
    shape: tuple[int, ...]
    offset: tuple[int, ...]


class SlicedTensors:
    """The tensors in files of `write_slices`, read slice by slice.

    Args:
        paths: all files of one set; their headers are read at once.

    Raises:
        OSError, WeightsError: if a file cannot be read.
    """

    def __init__(self, paths: Iterable[Path]):
        self._files = {path: open_tensors(path) for path in paths}
        self._slices: dict[str, list[StoredSlice]] = defaultdict(list)
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the whole tensors, by name
        for path, file in self._files.items():
            try:
                known = json.loads((file.metadata() or {}).get(SLICES_KEY, "{}")) or {}
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    shape = tuple(file.get_slice(name).get_shape())
                    entry = known.get(name, {"shape": shape, "offset": [0] * len(shape)})
                    whole, offset = (tuple(map(int, entry[key])) for key in ("shape", "offset"))
                    if not len(whole) == len(offset) == len(shape):
                        raise ValueError(f"{name} of shape {shape} at {offset} of {whole}")
                    self._slices[name].append(StoredSlice(path, shape, offset))
                    self.shapes[name] = whole
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise WeightsError(
                    f"{path}: expected where its slices belong, found {named(error)}; "
                    f"copy the checkpoint again"
                ) from error

    def read(self, name: str, *, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """The slice of this shape that begins at `offset` in the whole tensor, on the CPU.

        Raises:
            ValueError: if the files do not have all of it.
        """
        result, n_read = None, 0
        for stored in self._slices[name]:
            starts = [max(pair) for pair in zip(offset, stored.offset, strict=True)]
            ends = [
                min(begin + size, other_begin + other_size)
                for begin, size, other_begin, other_size in zip(
                    offset, shape, stored.offset, stored.shape, strict=True
                )
            ]
            if any(end < start for start, end in zip(starts, ends, strict=True)):
                continue
            part = self._read_part(stored, name, starts, ends)
            if result is None:
                result = torch.empty(shape, dtype=part.dtype)
            within = [slice(s - o, e - o) for s, e, o in zip(starts, ends, offset, strict=True)]
            result[tuple(within)] = part
            n_read += part.numel()
        if result is None or n_read != result.numel():
            raise ValueError(f"expected all of {name}, found {n_read} numbers of a slice {shape}")
        return result

    def _read_part(self, stored: StoredSlice, name: str, starts: list, ends: list) -> Tensor:
        """What a file has between these places of the whole tensor."""
        file = self._files[stored.path]
        if not stored.shape:
            return file.get_tensor(name)  # a number has no slices
        places = zip(starts, ends, stored.offset, strict=True)
        return file.get_slice(name)[tuple(slice(s - o, e - o) for s, e, o in places)]
