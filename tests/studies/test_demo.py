"""The demo, without its training."""

from types import SimpleNamespace

import foveate.studies.demo as demo


def test_a_demo_that_was_finished_replaces_its_own_file(tmp_path, monkeypatch):
    asked = {}

    def export(_model, _format, folder, **options):
        asked.update(options, folder=folder)
        return "exported"

    found = SimpleNamespace(models=dict.fromkeys(demo.PLANS), print=lambda _: None)
    monkeypatch.setattr(demo, "compare", lambda *_, **__: found)
    monkeypatch.setattr(demo, "report", lambda *_, **__: tmp_path / "report.html")
    monkeypatch.setattr(demo, "export", export)
    assert demo.demo(quick=True, output=tmp_path, progress=False) is found
    assert asked["folder"] == tmp_path / "exported"
    assert asked["overwrite"]
