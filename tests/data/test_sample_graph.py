"""Batches of samples and their graphs, by hand."""

import pytest
import torch

from leyden.data import distance_graph, hyperplane_hash, stratified_batches


@pytest.mark.parametrize("batch_size", [7, 20, 64, 1000])
def test_batches_hold_the_classes_in_their_shares(batch_size):
    targets = torch.tensor([0] * 61 + [1] * 9 + [2] * 130)[torch.randperm(200)]
    batches = stratified_batches(targets, batch_size, seed=3)
    assert sorted(torch.cat(batches).tolist()) == [*range(200)]
    assert len(batches) == -(-200 // batch_size)
    sizes = [len(rows) for rows in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    for number in range(3):
        counts = [int((targets[rows] == number).sum()) for rows in batches]
        assert max(counts) - min(counts) <= 1
        assert abs(counts[0] - int((targets == number).sum()) / len(batches)) < 1.0


def test_batches_depend_on_the_seed_alone():
    targets = torch.arange(40) % 4
    one, same, other = (stratified_batches(targets, 10, seed=seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, one, same))
    assert not all(map(torch.equal, one, other))


def test_nearest_pairs_by_hand():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # distances 1, 3, 7, 2, 6, 4 of the pairs in order
    assert distance_graph(x, quantile=1 / 6).nonzero().tolist() == [[0, 1], [1, 0]]
    assert distance_graph(x, quantile=0.5).triu().nonzero().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert torch.equal(distance_graph(x, quantile=1.0), ~torch.eye(4, dtype=torch.bool))
    assert not distance_graph(x[:1]).any()
    random = torch.randn(25, 2, generator=torch.Generator().manual_seed(0))
    assert int(distance_graph(random, quantile=0.07).triu().sum()) == 21  # of 300, though 0.07 * 300 > 21 in floats
    equal = torch.zeros(3, 2)  # all pairs are as near as the nearest
    assert int(distance_graph(equal, quantile=0.1).sum()) == 6


def test_a_graph_is_symmetric_and_has_the_share_of_pairs():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    graph = distance_graph(x, quantile=0.2)
    assert torch.equal(graph, graph.T)
    assert not graph.diagonal().any()
    assert int(graph.triu().sum()) == 245  # of 1,225 pairs
    distances = (x.unsqueeze(1) - x.unsqueeze(0)).norm(dim=-1)
    assert distances[graph].max() < distances[~graph & ~torch.eye(50, dtype=torch.bool)].min()


def test_hash_by_hand():
    x = torch.tensor([[2.0, 1.0], [4.0, 2.0], [-2.0, -1.0], [1.0, -3.0]])
    generator = torch.Generator().manual_seed(5)
    planes = torch.randn(2, 3, generator=torch.Generator().manual_seed(5))
    cells = hyperplane_hash(x, 3, generator=generator)
    signs = [
        [sum(a * b for a, b in zip(row, plane, strict=True)) > 0 for plane in planes.T.tolist()] for row in x.tolist()
    ]
    assert cells.tolist() == [sum(2**bit for bit, above in enumerate(row) if above) for row in signs]
    assert cells[0] == cells[1]  # of one direction
    assert cells[0] + cells[2] == 7  # of opposite ones: all bits differ
    assert not torch.equal(hyperplane_hash(x, 62, generator=generator), hyperplane_hash(x, 62, generator=generator))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stratified_batches(torch.arange(3), 0), "batch_size must be at least 1, got 0"),
        (lambda: stratified_batches(torch.rand(3), 2), "class numbers"),
        (lambda: stratified_batches(torch.arange(0), 2), "class numbers"),
        (lambda: distance_graph(torch.rand(3, 2), quantile=0.0), r"quantile must lie in \(0, 1\], got 0.0"),
        (lambda: distance_graph(torch.rand(3)), r"x must be \[N, D\], got \(3,\)"),
        (lambda: hyperplane_hash(torch.rand(3, 2), 63, generator=torch.Generator()), "bits must lie in 1..62, got 63"),
        (lambda: hyperplane_hash(torch.rand(3), 2, generator=torch.Generator()), r"x must be \[N, D\], got \(3,\)"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
