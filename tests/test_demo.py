"""The demo's table of probes is kept for as long as weights, images and titles are the same."""

import os
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from hsic_lab import demo


class Part(SimpleNamespace):
    def __len__(self):
        return len(self.images)


@pytest.fixture
def probed(monkeypatch, tmp_path):
    """A call of `demo_probe`, the number of times that it probed, and its runs."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / demo.WEIGHTS).write_bytes(name.encode())
    config, encoder = SimpleNamespace(), torch.nn.Flatten()
    runs = {name: SimpleNamespace(folder=tmp_path / name, config=config, encoder=encoder) for name in "ab"}
    part = Part(images=torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels=torch.arange(4))
    data, times = SimpleNamespace(train=part, test=part, fingerprint="images"), []
    table = pd.DataFrame({"representation": ["a"], "accuracy": [0.25]})
    monkeypatch.setattr(demo, "make_networks", lambda *_: (encoder, None))
    monkeypatch.setattr(demo, "probe_table", lambda *_, **__: times.append(1) or table)
    return lambda: demo.demo_probe(runs, data, tmp_path / "probe.csv"), times, runs, data, table


def test_table_is_kept_by_content_and_not_by_time(probed, tmp_path):
    call, times, runs, data, table = probed
    for moment in (None, 0, 4e9):  # a copy may be older or newer than the weights
        if moment is not None:
            os.utime(tmp_path / "probe.csv", (moment, moment))
        pd.testing.assert_frame_equal(call(), table)
        assert len(times) == 1
    (tmp_path / "a" / demo.WEIGHTS).write_bytes(b"other")
    os.utime(tmp_path / "a" / demo.WEIGHTS, (0, 0))
    call()
    assert len(times) == 2
    data.fingerprint = "other images"
    call()
    runs["c"] = runs.pop("b")
    call()
    assert len(times) == 4
    table.to_csv(tmp_path / "probe.csv", index=False)  # a table of an earlier version has no digest
    call()
    assert len(times) == 5
