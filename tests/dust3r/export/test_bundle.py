import zipfile
from dataclasses import replace

import numpy as np
import pytest

from dust3r.export import export_all, write_maps, write_zip


def test_everything_of_a_scene(reconstruction, tmp_path):
    paths = export_all(reconstruction, tmp_path / "out")
    assert all(path.exists() for path in paths.values())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "points.ply", "scene.glb", "images", "sparse", "transforms.json", "sparse_pc.ply",
        "depths", "maps",
    }  # fmt: skip
    assert len(list(paths["images"].iterdir())) == 4
    assert {path.name for path in paths["colmap"].iterdir()} >= {
        "cameras.bin", "images.bin", "points3D.bin",
    }  # fmt: skip


def test_an_export_replaces_an_earlier_one_and_nothing_else(reconstruction, build, tmp_path, shots):
    export_all(reconstruction, tmp_path / "out")
    export_all(reconstruction, tmp_path / "out")
    with pytest.raises(FileExistsError, match="images holds other files"):
        export_all(build(names=["x.jpg", "y.png"], shots=shots[:2]), tmp_path / "out")
    assert len(list((tmp_path / "out" / "images").iterdir())) == 4
    assert not list((tmp_path / "out").rglob("*.tmp*"))


def test_nothing_is_written_where_nothing_is_kept(reconstruction, tmp_path):
    with pytest.raises(ValueError, match="no point is kept"):
        export_all(
            reconstruction, tmp_path / "out", kept=[mask & False for mask in reconstruction.valid]
        )
    assert not (tmp_path / "out").exists()


def test_zip_holds_the_folder(reconstruction, tmp_path):
    paths = export_all(reconstruction, tmp_path / "out")
    with zipfile.ZipFile(write_zip(tmp_path / "out", tmp_path / "out.zip")) as packed:
        assert packed.testzip() is None
        files = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
        assert set(packed.namelist()) == {str(path.relative_to(tmp_path)) for path in files}
        assert packed.read("out/points.ply") == paths["points"].read_bytes()


def test_zip_beside_the_folder_only(tmp_path):
    with pytest.raises(FileNotFoundError, match="export into it first"):
        write_zip(tmp_path / "none", tmp_path / "out.zip")
    with pytest.raises(ValueError, match="write it elsewhere"):
        write_zip(tmp_path, tmp_path / "out.zip")


def test_maps_hold_what_undoes_scale_and_crop(reconstruction, shots, tmp_path):
    folder = write_maps(reconstruction, tmp_path / "maps")
    assert "camera-to-world" in (folder / "README.txt").read_text()
    maps = np.load(folder / "e.npz")
    assert str(maps["name"]) == "кухня é.png"
    for key, expected in {
        "depth": reconstruction.depthmaps[1],
        "sigma": reconstruction.deviations[1],
        "confidence": reconstruction.confidences[1],
        "valid": reconstruction.valid[1],
        "intrinsics": reconstruction.intrinsics[1],
        "pose": reconstruction.poses[1],
        "original_size": np.array([240, 144]),
        "original_intrinsics": shots[1].intrinsics,
        "to_original": shots[1].to_original,
    }.items():
        assert np.allclose(maps[key], expected), key
    assert np.array_equal(maps["original_size"], shots[1].size)


def test_maps_without_sigma(build, tmp_path):
    folder = write_maps(build(deviations=False), tmp_path / "maps")
    assert "sigma" not in np.load(folder / "room_1.npz")


def test_radii_stand_beside_sigma_where_there_are_any(reconstruction, tmp_path):
    plain = export_all(reconstruction, tmp_path / "plain")
    radii = tuple(3 * one for one in reconstruction.deviations)
    told = export_all(replace(reconstruction, radii90=radii), tmp_path / "told")
    assert b"radius90" not in plain["points"].read_bytes()[:1000]
    header = told["points"].read_bytes()[:1000]
    assert b"property float sigma\nproperty float radius90\nend_header" in header
    for number, path in enumerate(sorted(told["maps"].glob("*.npz"))):
        with np.load(path) as maps, np.load(plain["maps"] / path.name) as before:
            assert set(maps) - set(before) == {"radius90"}, number
            np.testing.assert_allclose(maps["radius90"], 3 * maps["sigma"], rtol=1e-6)
