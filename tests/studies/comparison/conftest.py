import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "verdict.py"


@pytest.fixture(scope="session")
def simulation():
    """The benchmark of the verdict: comparisons in which the truth is known."""
    spec = importlib.util.spec_from_file_location("verdict_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
