"""The README's example of a reconstruction runs as it stands."""

import re
from pathlib import Path

import pycolmap

REPOSITORY = Path(__file__).parents[1]


def test_example_from_photographs_to_exports(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "export_all" in block]
    assert "output/room" in example
    exec(example.replace("output/room", str(tmp_path / "room")), {})
    model = pycolmap.Reconstruction(tmp_path / "room/sparse/0")
    assert model.num_images() == 3 and model.num_points3D() > 1000
