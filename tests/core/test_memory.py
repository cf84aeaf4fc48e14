import io

import pytest
import torch

from leyden.core import SampleMemory


def test_reads_what_was_written_and_says_what_was():
    memory = SampleMemory(4, 2, fill=-1)
    memory.write(torch.tensor([2, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    rows, written = memory.read(torch.tensor([0, 1, 2, 2]))
    assert rows.tolist() == [[3.0, 4.0], [-1.0, -1.0], [1.0, 2.0], [1.0, 2.0]]
    assert written.tolist() == [True, False, True, True]
    assert len(memory) == 4


def test_rows_are_copies_and_take_no_gradient():
    memory = SampleMemory(3)
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    memory.write(torch.tensor([0, 1]), value)
    rows, _ = memory.read(torch.tensor([0, 1]))
    assert not rows.requires_grad
    rows.zero_()
    assert memory.values.tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.bool])
def test_rows_are_cast_to_the_dtype_of_the_memory(dtype):
    memory = SampleMemory(2, dtype=dtype)
    memory.write(torch.tensor([1]), torch.tensor([1.0]))
    assert memory.values.dtype == dtype
    assert memory.values.tolist() == [0, 1]


def test_state_goes_through_a_file():
    memory, other = SampleMemory(3, 2), SampleMemory(3, 2)
    memory.write(torch.tensor([1]), torch.tensor([[5.0, 6.0]]))
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.values, memory.values)
    assert torch.equal(other.written, memory.written)


def test_a_loaded_state_is_a_copy():
    memory, other = SampleMemory(2), SampleMemory(2)
    other.load_state_dict(memory.state_dict())
    other.write(torch.tensor([0]), torch.tensor([1.0]))
    assert memory.values.tolist() == [0.0, 0.0]
    assert not memory.written.any()


def test_it_follows_the_index_to_its_device():
    memory = SampleMemory(2)
    memory.read(torch.zeros(1, dtype=torch.int64, device="meta"))
    assert memory.values.device.type == memory.written.device.type == "meta"


def test_errors():
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        SampleMemory(0)
    memory = SampleMemory(4, 3)
    for rows in (torch.zeros(2), torch.zeros(2, 4), torch.zeros(1, 3)):
        with pytest.raises(ValueError, match=r"rows must have shape \(2, 3\)"):
            memory.write(torch.tensor([0, 1]), rows)
    with pytest.raises(ValueError, match=r"has shape \(5, 3\), this run needs \(4, 3\)"):
        memory.load_state_dict(SampleMemory(5, 3).state_dict())
