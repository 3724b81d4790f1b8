"""Shared: memory that is NaN before it is written."""

import pytest
import torch


@pytest.fixture
def nan_memory(monkeypatch):
    """torch.empty and its kin give NaN, so that nothing reads unseen what nothing wrote."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
