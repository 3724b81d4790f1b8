"""What the tests of the gates share."""

import pytest

from foveate.attention import se


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """SE takes its passes for small maps, too."""
    monkeypatch.setattr(se, "_ELEMENTS", 0)
    monkeypatch.setattr(se, "_POSITIONS", 0)
