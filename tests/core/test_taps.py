import copy

import pytest
import torch
from torch import nn

from leyden.core import FeatureTaps


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))


def test_collects_what_the_named_modules_return():
    net, x = network(), torch.randn(2, 3)
    taps = FeatureTaps(net, ["0", "2.1"])
    with taps.collect() as found:
        output = net(x)
    assert set(found) == {"0", "2.1"}
    assert torch.equal(found["0"], net[0](x))
    assert found["2.1"] is output
    assert len(taps) == 2


def test_nothing_is_collected_outside():
    net = network()
    taps = FeatureTaps(net, ["0"])
    with taps.collect() as found:
        pass
    net(torch.randn(2, 3))
    assert found == {}


def test_collections_inside_of_one_another_do_not_mix():
    net = network()
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    taps = FeatureTaps(net, ["0"])
    with taps.collect() as outer:
        net(a)
        with taps.collect() as inner:
            net(b)
    assert torch.equal(outer["0"], net[0](a))
    assert torch.equal(inner["0"], net[0](b))


def test_an_error_ends_the_collection():
    net = network()
    taps = FeatureTaps(net, ["0"])
    with pytest.raises(KeyError), taps.collect() as found:
        raise KeyError
    net(torch.randn(2, 3))
    assert found == {}


def test_the_last_call_counts_and_gradients_flow():
    net = nn.Sequential(nn.Linear(3, 3))
    taps = FeatureTaps(net, ["0"])
    with taps.collect() as found:
        net[0](torch.zeros(1, 3))
        net(torch.ones(1, 3))
    found["0"].sum().backward()
    assert net[0].weight.grad.eq(1.0).all()


def test_a_second_request_changes_nothing_and_remove_takes_all_away():
    net = network()
    taps = FeatureTaps(net)
    assert not taps
    taps.add("0")
    taps.add("0")
    assert len(taps) == 1
    with taps.collect(), taps.collect():
        pass
    assert len(net[0]._forward_hooks) == 1
    taps.remove()
    assert not taps
    assert not net[0]._forward_hooks
    taps.add("0")
    with taps.collect() as found:
        net(torch.zeros(1, 3))
    assert set(found) == {"0"}


def test_an_unknown_name_is_refused_with_near_ones():
    with pytest.raises(ValueError, match=r"no module '2\.7' in Sequential; near it: .*2\."):
        FeatureTaps(network(), ["2.7"])
    with pytest.raises(ValueError, match=r"no module 'backbone' in Sequential; near it: 0, 1, 2"):
        FeatureTaps(network(), ["backbone"])


def test_a_copy_does_not_write_into_the_collection():
    net, x = network(), torch.randn(2, 3)
    taps = FeatureTaps(net, ["0"])
    teacher = copy.deepcopy(net)
    nn.init.zeros_(teacher[0].weight)
    with taps.collect() as found:
        net(x)
        teacher(x)
    assert torch.equal(found["0"], net[0](x))
