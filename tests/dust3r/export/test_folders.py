import pytest

from dust3r.export.folders import whole_folder


def test_a_failure_leaves_what_was_there(tmp_path):
    with whole_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (tmp_path / "deep" / "out" / "a").read_text() == "old"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for text in ("old", "new"):
        with whole_folder(tmp_path / "out") as folder:
            (folder / "a").write_text(text)
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_of_others_stay(tmp_path):
    (tmp_path / "out" / "mine").mkdir(parents=True)
    (tmp_path / "out" / "mine" / "photo.jpg").write_text("precious")
    with (
        pytest.raises(FileExistsError, match=r"out holds other files \(mine/photo.jpg\)"),
        whole_folder(tmp_path / "out") as folder,
    ):
        (folder / "a").write_text("new")
    assert (tmp_path / "out" / "mine" / "photo.jpg").read_text() == "precious"
    assert not (tmp_path / "out" / "a").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("file")
    with pytest.raises(FileExistsError, match="move it away"), whole_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "file"
