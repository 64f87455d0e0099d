"""SUN3D: sequences found at any depth; one that is damaged fails alone."""

import json

from raw.sun3d import write_sequence

from datasets_preprocess.layout import read_metadata
from datasets_preprocess.preprocess_sun3d import find_sequences, main


def test_sequences_are_named_by_their_place_and_a_bad_one_is_reported(tmp_path):
    raw, root = tmp_path / "raw", tmp_path / "out"
    write_sequence(raw / "harvard_c5" / "hv_c5_1", 3)
    bad = write_sequence(raw / "mit_32" / "floor_1", 2)
    for file in (bad / "extrinsics").iterdir():
        file.write_text("1 0 0\n")
    assert [source.name for source in find_sequences(raw)] == [
        "harvard_c5_hv_c5_1",
        "mit_32_floor_1",
    ]
    arguments = ["--sun3d_dir", str(raw), "--output_dir", str(root)]
    assert main([*arguments, "--num_workers", "1"]) == 0
    index = read_metadata(root)
    assert index.scenes.tolist() == ["harvard_c5_hv_c5_1"] and index.splits.tolist() == [""]
    failed = json.loads((root / "preprocess.json").read_text())["failed"]
    assert "expected 3x4 matrices, got 3 numbers" in failed["mit_32_floor_1"]


def test_a_sequence_itself_can_be_given(tmp_path):
    folder = write_sequence(tmp_path / "hotel", 2)
    (source,) = find_sequences(folder)
    assert source.name == "hotel"


def test_a_folder_without_sequences_is_refused(tmp_path, capsys):
    assert main(["--sun3d_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 1
    assert "found no scene to preprocess" in capsys.readouterr().err
