import pytest
import torch

from leyden.core import require_keys


def test_present_keys_pass():
    require_keys({"input": torch.zeros(1), "target": torch.zeros(1)}, "input", "target", user="Someone")


def test_missing_keys_are_named_with_who_needs_them_and_what_is_there():
    with pytest.raises(ValueError, match=r"Someone needs the batch keys \['mask', 'domain'\].*only \['a', 'b'\]"):
        require_keys({"b": torch.zeros(1), "a": torch.zeros(1)}, "mask", "a", "domain", user="Someone")
