import pytest

from leyden.callbacks import DynamicFixedPoint, SigmaReparametrization
from leyden.data import Digits
from leyden.methods import Classification
from leyden.models import ConvNet
from leyden.nn import DFPConv2d, DFPLinear


def test_converts_once_and_composes_with_parametrizations(make_trainer):
    method = Classification(ConvNet(1, 10, width=2))
    names = list(method.state_dict())
    callback = DynamicFixedPoint(bits=12)
    trainer = make_trainer(callback, max_steps=2)
    trainer.fit(method, datamodule=Digits(batch_size=8))
    kinds = [module for module in method.modules() if isinstance(module, DFPConv2d)]
    assert kinds
    assert all(module.bits == 12 for module in kinds)
    assert not any(isinstance(module, DFPLinear) for module in method.modules())  # the head alone is linear
    assert list(method.state_dict()) == names
    SigmaReparametrization().build(method)
    with pytest.raises(ValueError, match="is parametrized already: convert the network to DFP first"):
        DynamicFixedPoint().build(method)


def test_bad_bits():
    with pytest.raises(ValueError, match="bits must lie in 2..16, got 32"):
        DynamicFixedPoint(bits=32)
