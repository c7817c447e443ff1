import shutil
from collections.abc import Iterator
from pathlib import Path

import pki
import pytest
from world import TSA, World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One good packet for all threats; a test works on a copy."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, which plays the timestamp authority")
    folder = tmp_path_factory.mktemp("world")
    with pki.serving(TSA, folder / "tsa") as url:
        made = World(folder / "packet", url)
        made.write(made.packet)
        yield made


@pytest.fixture
def packet(world: World, tmp_path: Path) -> Path:
    return world.copy(tmp_path)
