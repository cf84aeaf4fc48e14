"""Selection by graph attention: what is scored, what is kept, and what is refused."""

import pytest
import torch
from torch.nn import functional

from leyden.curation import GAIS, curation, gais
from leyden.data import DataModule, TensorDictDataset


class Clouds(DataModule):
    """Two clouds of 30 and 15 points, the first of which comes twice."""

    num_classes = 2

    def datasets(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(45, 3, generator=generator) + torch.tensor([[-2.0]] * 30 + [[2.0]] * 15)
        target = torch.tensor([0] * 30 + [1] * 15)
        return {"train": TensorDictDataset({"input": torch.cat([x, x[:1]]), "target": torch.cat([target, target[:1]])})}


def make(**given):
    return GAIS(**{"hidden": 4, "heads": 2, "keep": 0.2, "batch_size": 16, "epochs": 10, **given})


@pytest.mark.parametrize("given", [{}, {"graph": "hash", "bits": [2, 4], "views": 2}, {"score": "confidence"}])
def test_keeps_a_share_of_each_class(given):
    data = Clouds(seed=0)
    made = make(**given)(data)
    source = data.datasets()["train"].tensors
    assert torch.equal(made["input"], source["input"][made["source_index"]])
    assert made["target"].tolist() == [0] * 6 + [1] * 3
    assert len({*made["source_index"].tolist()}) == 9
    again = make(**given)(Clouds(seed=0))
    assert torch.equal(again["source_index"], made["source_index"])
    assert len(make(keep=1e-6, **given)(data)["input"]) == 2  # at least one of each
    assert len(make(keep=0.20000000000000007, **given)(data)["input"]) == 9  # an error of rounding is no sample
    # all, the equal ones once
    everything = make(keep=1.0, **given)(data)["source_index"]
    assert sorted(everything.tolist()) == [*range(45)]


def test_attention_received_by_hand():
    attention = torch.tensor([[[0.5, 0.3, 0.2, 0.0], [0.6, 0.4, 0.0, 0.0], [0.9, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    graph = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    two_heads = torch.cat([attention, torch.eye(4).unsqueeze(0)])
    # of the first: (0.5 + 0.6 + 0.9) / 3; no other sees the last
    expected = torch.tensor([2.0 / 3, 0.35, 0.15, 0.0])
    torch.testing.assert_close(gais._received_attention(attention, graph), expected)
    of_itself = torch.tensor([1 / 3, 1 / 2, 1 / 2, 0.0])
    torch.testing.assert_close(gais._received_attention(two_heads, graph), (expected + of_itself) / 2)


def test_learns_the_classes_and_keeps_the_sure_ones(monkeypatch):
    losses = []
    loss = functional.cross_entropy
    monkeypatch.setattr(functional, "cross_entropy", lambda *given: losses.append(loss(*given)) or losses[-1])
    made = make(score="confidence", keep=0.1)(Clouds(seed=0))
    assert len(losses) == 30  # 3 batches
    assert losses[-1] < 0.3 * losses[0]
    # what is kept lies on its side of the middle
    assert ((made["input"].mean(1) > 0) == (made["target"] == 1)).all()


def test_pairs_in_one_cell_of_any_draw_are_connected():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    parts = [torch.arange(20)]
    graphs = {}
    for name, bits, views in (("one", 6, 1), ("levels", [6, 2], 1), ("views", 6, 4)):
        generator = torch.Generator().manual_seed(0)
        (graphs[name],) = make(graph="hash", bits=bits, views=views)._graphs(x, parts, generator)
        assert torch.equal(graphs[name], graphs[name].T)
        assert not graphs[name].diagonal().any()
    for more in ("levels", "views"):
        assert (graphs[more] | ~graphs["one"]).all()
        assert graphs[more].sum() > graphs["one"].sum()


class KilledError(Exception):
    pass


def test_goes_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(curation, "SAVE_EVERY", 4)
    whole = make()(Clouds(seed=0))["source_index"]
    loss, steps = functional.cross_entropy, []

    def killing(*given):
        steps.append("step")
        if len(steps) in (6, 14, 22):
            raise KilledError
        return loss(*given)

    monkeypatch.setattr(functional, "cross_entropy", killing)
    for stop in range(4):
        killed = make()
        killed.keep_progress(tmp_path / "progress", "settings")
        if stop < 3:
            with pytest.raises(KilledError):
                killed(Clouds(seed=0))
    assert torch.equal(killed(Clouds(seed=0))["source_index"], whole)
    assert 30 < len(steps) < 45


WRONG = {
    "hidden must be at least 1, got 0": {"hidden": 0},
    "epochs must be at least 1, got 0": {"epochs": 0},
    r"keep must lie in \(0, 1\], got 0": {"keep": 0},
    r"quantile must lie in \(0, 1\], got 2": {"quantile": 2},
    "graph must be 'distance' or 'hash', got 'knn'": {"graph": "knn"},
    "score must be 'attention' or 'confidence', got 'loss'": {"score": "loss"},
    r"bits must lie in 1..62, got \[8, 0\]": {"bits": [8, 0]},
    "lr must be positive, got 0": {"lr": 0},
    "lr must be positive, got nan": {"lr": float("nan")},
}


@pytest.mark.parametrize(("message", "given"), WRONG.items())
def test_wrong_arguments(message, given):
    with pytest.raises(ValueError, match=message):
        make(**given)


def test_wrong_data(monkeypatch):
    class Data(DataModule):
        target = torch.zeros(4, 2)

        def datasets(self):
            return {"train": TensorDictDataset({"input": torch.rand(4, 3), "target": self.target})}

    with pytest.raises(ValueError, match=r"GAIS needs class numbers \[S\] as targets, got torch.float32 \(4, 2\)"):
        make()(Data(seed=0))
    monkeypatch.setattr(Data, "target", torch.full((4,), 3))
    with pytest.raises(ValueError, match="all targets are 3"):
        make()(Data(seed=0))
