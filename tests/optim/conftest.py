"""Both forms of an optimizer's step, on the CPU."""

import importlib

import pytest

import leyden.optim


@pytest.fixture
def force_foreach(monkeypatch):
    """``force_foreach()`` makes optimizers work by ``_foreach_`` over lists, as they do on a GPU."""

    def force():
        for name in ("adam_r", "adam_s", "lamb", "lars", "root", "sophia", "spam", "stable_spam"):
            module = importlib.import_module(f"{leyden.optim.__name__}.{name}")
            monkeypatch.setattr(module, "is_loop_faster", lambda *lists: False)

    return force


@pytest.fixture(params=["loop", "foreach"])
def form(request, force_foreach):
    """Runs a test in both forms."""
    if request.param == "foreach":
        force_foreach()
    return request.param
