"""A short round of what `scripts/soak` does for as long as one likes."""

import importlib.util
import os
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
def test_a_hurt_run_ends_as_if_nothing_had_happened(tmp_path):
    spec = importlib.util.spec_from_file_location("soak", Path(__file__).with_name("soak.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    seed = int(os.environ.get("LEYDEN_TEST_SEED", "0")[:8], 16)
    survived, failures = module.soak(tmp_path, minutes=5.0, seed=seed, max_faults=3)
    assert not failures
    assert survived.total() >= 3
