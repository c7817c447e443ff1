"""Settings of the whole test suite, and the small audit that several files share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_audit
import torch
from hypothesis import HealthCheck, settings
from unfenced import unfence

# Models of a few hundred parameters gain nothing from threads, and lose much on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A second process for every stage that a test records; tests/recorder/test_self_check.py turns it on.
os.environ["AUDITSPEC_SELF_CHECK"] = "0"

# A process for every audit; tests/sealed and tests/threats turn it on.
os.environ["AUDITSPEC_ISOLATION"] = "none"

# A busy machine is no reason to fail: time says nothing about what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another, or the user, left: estimates, and logs that were seen."""
    monkeypatch.setenv("AUDITSPEC_STATE", str(tmp_path_factory.mktemp("state")))
    monkeypatch.setenv("AUDITSPEC_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """What a library leaves in the environment, such as the ports of its processes, stays with one test."""
    before = set(os.environ)
    yield
    for name in os.environ.keys() - before:
        if not name.startswith("PYTEST_"):
            del os.environ[name]


@pytest.fixture(autouse=True)
def _unfenced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets are verified in this process, and equal results drawn once, but for tests that are marked."""
    if request.node.get_closest_marker("fenced") is None:
        unfence(monkeypatch)


no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=no_cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Every kind of device; what holds on one holds on all, up to rounding."""
    return str(request.param)


@pytest.fixture(scope="session")
def trained_audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small audit, to be copied and not changed."""
    return small_audit.make(tmp_path_factory.mktemp("trained")).parent


@pytest.fixture
def audit_spec(trained_audit: Path, tmp_path: Path) -> Path:
    """The spec of a small audit in a folder of this test's own."""
    folder = tmp_path / "audit"
    shutil.copytree(trained_audit, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "audit.yaml"
