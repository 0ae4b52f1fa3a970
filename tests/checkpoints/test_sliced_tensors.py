"""Tensors written in slices, and read in others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_gpt2scratch.checkpoints.sliced_tensors import SlicedTensors, write_slices


def write_rows(directory, tensor, n_files):
    """Files as the ranks of a sharded run leave them: equal rows, fewer or none for the last."""
    paths = []
    per_file = -(-tensor.shape[0] // n_files)
    for number in range(n_files):
        start = min(number * per_file, tensor.shape[0])
        part = tensor[start : start + per_file].contiguous()
        offset = [start] + [0] * (tensor.dim() - 1)
        slices = {"weight": {"shape": list(tensor.shape), "offset": offset}}
        paths.append(directory / f"{number}.safetensors")
        write_slices(paths[-1], {"weight": part}, slices)
    return paths


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_slice_is_read_from_any_number_of_files(tmp_path_factory, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    directory = tmp_path_factory.mktemp("slices")
    stored = SlicedTensors(write_rows(directory, tensor, data.draw(st.integers(1, 5))))
    starts = [data.draw(st.integers(0, size)) for size in shape]
    ends = [data.draw(st.integers(start, size)) for start, size in zip(starts, shape, strict=True)]
    sizes = tuple(end - start for start, end in zip(starts, ends, strict=True))
    places = tuple(slice(start, end) for start, end in zip(starts, ends, strict=True))
    assert stored.shapes == {"weight": shape}
    assert torch.equal(stored.read("weight", offset=tuple(starts), shape=sizes), tensor[places])


def test_whole_tensors_and_numbers_need_no_metadata(tmp_path):
    tensors = {"step": torch.tensor(3.0), "weight": torch.ones(2, 3, dtype=torch.bfloat16)}
    write_slices(tmp_path / "whole.safetensors", tensors, None)
    stored = SlicedTensors([tmp_path / "whole.safetensors"])
    assert stored.read("step", offset=(), shape=()) == 3
    assert stored.read("weight", offset=(1, 1), shape=(1, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("slices", [None, {}])
def test_a_rank_may_have_nothing_to_write(tmp_path, slices):
    write_slices(tmp_path / "empty.safetensors", {}, slices)
    assert SlicedTensors([tmp_path / "empty.safetensors"]).shapes == {}


def test_a_hole_between_the_files_is_refused(tmp_path):
    paths = write_rows(tmp_path, torch.ones(6, 2), 3)
    stored = SlicedTensors([paths[0], paths[2]])
    assert stored.read("weight", offset=(4, 0), shape=(2, 2)).sum() == 4
    with pytest.raises(ValueError, match="expected all of weight, found 8 numbers"):
        stored.read("weight", offset=(0, 0), shape=(6, 2))
