import pytest
import torch

from leyden.data import GlobalBatchSampler, TemperatureSampling, cooldown_temperature

DOMAINS = torch.tensor([0] * 1000 + [3] * 100 + [7] * 10)[
    torch.randperm(1110, generator=torch.Generator().manual_seed(0))
]


def epoch(order, number=0, size=1110):
    return order(size, number, torch.Generator().manual_seed(number))


def shares(samples):
    return torch.stack([(DOMAINS[samples] == domain).double().mean() for domain in (0, 3, 7)])


def test_temperature_falls():
    assert [cooldown_temperature(progress) for progress in (0.0, 0.25, 0.5, 1.0, 1.5)] == [5.0, 4.0, 3.0, 1.0, 1.0]
    late = [cooldown_temperature(p, start=9.0, end=3.0, begin=0.2, finish=0.5) for p in (0.0, 0.2, 0.3, 0.5, 1.0)]
    assert late == pytest.approx([9.0, 9.0, 7.0, 3.0, 3.0])
    step = [cooldown_temperature(p, begin=0.4, finish=0.4) for p in (0.0, 0.39, 0.4, 1.0)]
    assert step == [5.0, 5.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("temperature", "expected"),
    # by hand: 1000, 100 and 10 to the power of 1 / temperature, in proportion
    [(1.0, [0.9009, 0.0901, 0.0090]), (2.0, [0.7061, 0.2233, 0.0706]), (5.0, [0.4938, 0.3116, 0.1966])],
)
def test_domains_come_at_their_temperature(temperature, expected):
    order = TemperatureSampling(DOMAINS, temperature=temperature, num_samples=20_000)
    found = shares(epoch(order))
    deviation = (torch.tensor(expected) * (1 - torch.tensor(expected)) / 20_000).sqrt()
    assert (found - torch.tensor(expected)).abs().lt(4 * deviation + 1e-4).all()


def test_all_samples_of_a_domain_come_before_one_comes_again():
    samples = epoch(TemperatureSampling(DOMAINS, temperature=5.0))
    for domain, size in ((0, 1000), (3, 100), (7, 10)):
        drawn = samples[DOMAINS[samples] == domain]
        assert len(drawn) > size or domain == 0
        for part in drawn.split(size):
            assert len(part.unique()) == len(part)
    rare = samples[DOMAINS[samples] == 7]
    assert rare[:10].tolist() != rare[10:20].tolist(), "a new order in each round"


def test_cools_down_over_the_epochs():
    order = TemperatureSampling(DOMAINS, temperature=5.0, end_temperature=1.0, finish=0.75, total_samples=4 * 1110)
    rare = [float(shares(epoch(order, number))[2]) for number in range(4)]
    assert rare[0] > rare[1] > rare[2] > rare[3]
    assert [order.temperature_at(drawn) for drawn in (0, 1110, 2220, 3330)] == pytest.approx([5.0, 11 / 3, 7 / 3, 1.0])
    in_one = epoch(TemperatureSampling(DOMAINS, temperature=5.0, end_temperature=1.0, total_samples=1110))
    assert shares(in_one[:555])[2] > shares(in_one[555:])[2], "within an epoch too"
    assert torch.equal(epoch(order, 2), epoch(order, 2)), "a pure function"


def test_processes_share_the_draws():
    order = TemperatureSampling(DOMAINS, num_samples=64)
    one = GlobalBatchSampler(1110, 16, order=order)
    two = [GlobalBatchSampler(1110, 16, order=order, num_replicas=2, rank=rank) for rank in range(2)]
    assert len(one) == len(two[0]) == 4
    shared = zip(*([batch for _, batch in sampler] for sampler in two), strict=True)
    assert [batch for _, batch in one] == [first + second for first, second in shared]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TemperatureSampling(DOMAINS, temperature=0.0), "temperatures must be positive"),
        (lambda: TemperatureSampling(DOMAINS, end_temperature=1.0), "total_samples must be given .*, got None"),
        (lambda: TemperatureSampling(DOMAINS, num_samples=0), "num_samples must be at least 1, got 0"),
        (lambda: TemperatureSampling(DOMAINS.double()), "domains must be .* int64 .S., got torch.float64"),
        (lambda: TemperatureSampling([]), "domains must be"),
        (lambda: epoch(TemperatureSampling(DOMAINS), size=3), "domains has 1110 entries, but there are 3"),
        (lambda: cooldown_temperature(0.0, begin=0.5, finish=0.4), "0 <= begin <= finish, got 0.5 and 0.4"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
