import pytest
import torch

from leyden.data import DomainBatches, RotatedDigits, Shuffled

DOMAIN = torch.tensor([3] * 7 + [0] * 12 + [8] * 4)[torch.randperm(23, generator=torch.Generator().manual_seed(0))]


def test_batches_are_of_one_domain():
    order = DomainBatches(DOMAIN, 4)
    first, second = (order(23, epoch, torch.Generator().manual_seed(epoch)).view(-1, 4) for epoch in range(2))
    for batches in (first, second):
        domains = DOMAIN[batches]
        assert (domains == domains[:, :1]).all()
        assert sorted(domains[:, 0].tolist()) == [0, 0, 0, 3, 8]
        assert len(batches.unique()) == 20
    assert DOMAIN[first[:, 0]].tolist() != DOMAIN[second[:, 0]].tolist(), "batches are shuffled"
    seen = [order(23, epoch, torch.Generator().manual_seed(epoch)).unique() for epoch in range(9)]
    assert len(torch.cat(seen).unique()) == 23, "what is left out changes"


def test_refusals():
    with pytest.raises(ValueError, match="batch_size must be at most 4, .* got 5"):
        DomainBatches(DOMAIN, 5)
    with pytest.raises(ValueError, match="domain has 23 entries, but there are 24 training samples"):
        DomainBatches(DOMAIN, 4)(24, 0, torch.Generator())


def test_of_rotated_digits():
    data = RotatedDigits(domain_batches=True, batch_size=32, seed=0)
    for batch in data.train_dataloader():
        assert (batch["domain"] == batch["domain"][0]).all()
    assert RotatedDigits().order is None
    with pytest.raises(ValueError, match="leave order out"):
        RotatedDigits(domain_batches=True, order=Shuffled())
