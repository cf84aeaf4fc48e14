"""What all test levels share."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Lightning's own, under torch 2.13; the tests' own warnings stay errors
    config.addinivalue_line("filterwarnings", "ignore:.*LeafSpec:FutureWarning")
