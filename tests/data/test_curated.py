"""Training sets that a curation wrote."""

import pytest
import torch
from safetensors import safe_open

from leyden.data import CuratedData, Digits, combine_grid, pack_tensors, prune_by_score, read_tensors

SCORES = torch.tensor([0.5, 0.1, 0.9, 0.1, 0.3, 0.2])
TARGETS = torch.tensor([1, 0, 0, 0, 1, 1])


def test_prune_by_hand():
    assert prune_by_score(SCORES, TARGETS, 2).tolist() == [1, 3, 5, 4]  # class 0, then 1; equal scores in order
    assert prune_by_score(SCORES, TARGETS, 2, keep="high").tolist() == [2, 1, 0, 4]
    assert prune_by_score(SCORES, TARGETS, 1).tolist() == [1, 5]


def test_prune_identities():
    assert sorted(prune_by_score(SCORES, TARGETS, 99).tolist()) == [*range(6)]
    assert prune_by_score(SCORES, TARGETS, 2).tolist() == prune_by_score(-SCORES, TARGETS, 2, keep="high").tolist()


def test_combine_by_hand():
    images = torch.stack([torch.full((1, 2, 2), float(value)) for value in (1, 2, 3, 4)])
    images[0, 0] = torch.tensor([[0.0, 1.0], [2.0, 5.0]])  # its mean is 2
    assert combine_grid(images).tolist() == [[[[2.0, 2.0], [3.0, 4.0]]]]


def test_combine_identities():
    images = torch.rand(8, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(combine_grid(images, 1), images)
    combined = combine_grid(images)
    assert combined.shape == (2, 3, 4, 6)
    torch.testing.assert_close(combined.mean((1, 2, 3)), images.view(2, 4, 3, 4, 6).mean((1, 2, 3, 4)))
    # row by row: the second of the first four is on top, right
    torch.testing.assert_close(combined[0, :, :2, 3:], torch.nn.functional.avg_pool2d(images[1], 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prune_by_score(SCORES, TARGETS, 2, keep="all"), "keep must be 'low' or 'high', got 'all'"),
        (lambda: prune_by_score(SCORES, TARGETS, 0), "per_class must be at least 1, got 0"),
        (lambda: prune_by_score(SCORES[:2], TARGETS, 1), "of one length"),
        (lambda: prune_by_score(SCORES.log().mul(0) / 0, TARGETS, 1), "scores must be numbers, got 6 NaN"),
        (lambda: combine_grid(torch.rand(3, 1, 4, 4)), "images must be a multiple of 4"),
        (lambda: combine_grid(torch.rand(4, 1, 3, 4)), "and their sides of 2"),
        (lambda: combine_grid(torch.ones(4, 1, 4, 4, dtype=torch.uint8)), "images must be floating point"),
        (lambda: combine_grid(torch.rand(4, 1, 4, 4), 0), "factor must be at least 1"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_same_content_is_the_same_file(tmp_path):
    tensors = {"input": torch.rand(3, 2, generator=torch.Generator().manual_seed(0)), "target": torch.arange(3)}
    metadata = {name: name for name in "abcdefgh"}
    content = {pack_tensors(tensors, metadata=metadata) for _ in range(5)}
    assert len(content) == 1
    (tmp_path / "d").write_bytes(content.pop())
    read = read_tensors(str(tmp_path / "d"))
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "d", framework="pt") as file:
        assert file.metadata() == {"leyden": "dataset", **metadata}


def test_trains_on_the_file_and_predicts_the_source(tmp_path):
    tensors = {"input": torch.rand(20, 1, 8, 8), "target": torch.arange(20) % 10, "source_index": torch.zeros(20, 4)}
    (tmp_path / "d.safetensors").write_bytes(pack_tensors(tensors, metadata={"made": "here"}))
    data = CuratedData(Digits(num_train=30), dataset=str(tmp_path / "d.safetensors"), batch_size=5)
    assert data.num_classes == 10
    assert data.num_samples == 20
    assert torch.equal(data.dataset("train").tensors["target"], tensors["target"])
    assert len(data.dataset("test")) == 359
    assert len(data.dataset("predict")) == 30
    assert CuratedData(Digits(num_train=30)).num_samples == 30
