"""The benchmark of a GPU: what it says where there is none, and that its measurements run at all."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.settings import gpt


def test_without_a_device_it_says_so_and_that_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 0
    assert "finds no CUDA device" in capsys.readouterr().out


def test_rates_are_measured_and_replay_lands_where_training_did(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpt, "LAYERS", 1)
    monkeypatch.setattr(gpt, "WIDTH", 32)
    size = argparse.Namespace(rows=2, steps=6)
    said = [*gpu.rates(torch.device(device), size, tmp_path)]
    rates = dict(
        re.fullmatch(r"(\w+): ([\d.]+) steps a second", line).groups() for line in said[:3]
    )  # type: ignore[union-attr]
    assert [*rates] == ["training", "recording", "replay"]
    assert all(float(rate) > 0 for rate in rates.values())
    (off,) = (float(m[1]) for line in said if (m := re.match(r"replay lands (\S+) from", line)))
    assert off == 0 if device == "cpu" else off < 1e-4
    assert any("on the device" in line for line in said) == (device == "cuda")
