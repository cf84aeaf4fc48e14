import pytest
import torch

from leyden.data import Sequential, TeacherSamples, TextFile
from leyden.models import GPT
from leyden.nn import LogitEnsemble

CONTEXT = 4


@pytest.fixture
def make(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"abcdefghijklmnopqrst" * 10)
    options = {"context": CONTEXT, "tokenizer": "char", "val_fraction": 0.1, "test_fraction": 0.1, "batch_size": 2}
    return lambda samples=None, **kwargs: TextFile(
        str(tmp_path / "text.txt"), samples=samples, **(options | {"seed": 0} | kwargs)
    )


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return GPT(20, CONTEXT, dim=8, depth=1, num_heads=2)


def test_samples_are_the_teachers(make, teacher):
    real, dataset = make().dataset("train"), make(TeacherSamples(teacher, 500)).dataset("train")
    batch = dataset.__getitems__(list(range(len(real), len(real) + 500)))
    assert torch.equal(batch["input"][:, 1:], batch["target"][:, :-1])
    starts = torch.cat([real[i]["input"][:1] for i in range(len(real))])
    assert torch.isin(batch["input"][:, 0], starts).all()
    # the mean log probability under the teacher is minus the entropy of what it predicts
    log_prob = LogitEnsemble(teacher)(batch["input"]).log_softmax(-1)
    found = log_prob.gather(-1, batch["target"].unsqueeze(-1)).mean()
    assert found.item() == pytest.approx((log_prob.exp() * log_prob).sum(-1).mean().item(), abs=0.05)


def test_windows_of_the_text_stay_as_they_are(make, teacher):
    source, data = make(), make(TeacherSamples(teacher, 10))
    num_real = source.num_samples
    assert data.num_samples == num_real + 10
    mixed = data.dataset("train").__getitems__([num_real + 2, 1, num_real])
    for key in ("input", "target"):
        assert mixed[key].dtype == torch.int64
        assert torch.equal(mixed[key][1], source.dataset("train")[1][key])
        assert torch.equal(mixed[key][0], data.dataset("train")[num_real + 2][key])
    for part in ("val", "test"):
        assert torch.equal(data.dataset(part).tokens, source.dataset(part).tokens)


@pytest.mark.parametrize(("weight", "sampled"), [(0.75, 117), (0.5, 39), (0.0, 0)])
def test_an_epoch(make, teacher, weight, sampled):
    data = make(TeacherSamples(teacher, 50, weight=weight))
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append(torch.cat([batch["index"] for batch in loader]))
    for indices in epochs:
        counts = indices.bincount(minlength=39 + 50)
        left_out = (39 + sampled) % 2  # by drop_last
        assert counts.sum() == 39 + sampled - left_out
        assert 39 - left_out <= counts[:39].sum() <= 39
        assert counts[:39].max() == 1
        assert counts[39:].max() - counts[39:].min() <= 1 + left_out  # none twice before all were there once
        assert not torch.equal(indices, indices.sort().values)
    assert not torch.equal(*epochs)


def test_seed(make, teacher):
    state = torch.get_rng_state()
    first, again, other = (make(TeacherSamples(teacher, 300), seed=seed).dataset("train").sampled for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (300, CONTEXT + 1)
    assert len(first.unique(dim=0)) > 200  # rows differ, also those of different chunks


def test_bad_input(make, teacher):
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        TeacherSamples(teacher, 0)
    with pytest.raises(ValueError, match=r"weight must lie in \[0, 1\), got 1.0"):
        TeacherSamples(teacher, 1, weight=1.0)
    with pytest.raises(ValueError, match="in an order of their own: leave order out"):
        make(TeacherSamples(teacher, 1), order=Sequential())
    with pytest.raises(ValueError, match="logits of the text's 20 tokens, it gives 30"):
        make(TeacherSamples(GPT(30, CONTEXT, dim=8, depth=1, num_heads=2), 1)).datasets()
    with pytest.raises(ValueError, match="logits of the text's 20 tokens, it gives 1"):
        make(TeacherSamples(GPT(1, CONTEXT, dim=8, depth=1, num_heads=2), 1)).datasets()
    with pytest.raises(ValueError, match=r"may have 3 tokens \(context\), got 4"):
        make(TeacherSamples(GPT(20, CONTEXT - 1, dim=8, depth=1, num_heads=2), 1)).datasets()
