"""Exports of a small scene."""

import shutil
from pathlib import Path

import pytest
from splat_scene import reconstruct

from dust3r.export import export_all


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splat") / "room"
    export_all(reconstruct(), folder)
    return folder


@pytest.fixture
def export(written: Path, tmp_path: Path) -> Path:
    """Everything that the project writes of the scene, in a folder of the test's own."""
    return shutil.copytree(written, tmp_path / "room")
