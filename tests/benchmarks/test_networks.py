"""The table of what networks cost."""

from __future__ import annotations

import pytest

from benchmarks import networks


@pytest.mark.slow
def test_every_network_has_its_ratios(monkeypatch, capsys):
    small = {name: config.change(backbone="resnet18") for name, config in list(networks.NETWORKS.items())[::4]}
    monkeypatch.setattr(networks, "NETWORKS", small)
    networks.main(["--size", "32", "--turns", "1"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == list(small)
    assert lines[0].count("1.0x") == 2
    step, inference = (float(cell.strip(" s")) for cell in lines[1].split("|")[2:5:2])
    assert step > 0 and inference > 0
