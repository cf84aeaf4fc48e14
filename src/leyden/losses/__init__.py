"""Pure functions on tensors, each with its `nn.Module` twin."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
