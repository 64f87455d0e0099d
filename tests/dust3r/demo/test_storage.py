"""What the demo takes from strangers, under which names, and what it tells them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dust3r.demo import storage
from dust3r.demo.storage import Upload, Workspace

ROOM = sorted((Path(__file__).parents[3] / "docs/images/example_room").glob("*.jpg"))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path / "demo")
    yield workspace
    workspace.close()


def uploaded(workspace: Workspace, name: str, content: bytes | None = None) -> Path:
    path = workspace.served / "hash" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(ROOM[0].read_bytes() if content is None else content)
    return path


def test_copies_have_names_of_our_own_and_suffixes_of_their_content(workspace, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    png = uploaded(workspace, "<script>.jpg", (tmp_path / "a.png").read_bytes())
    folder = workspace.new_session().work / "images"
    uploads = workspace.take_images([png, uploaded(workspace, "x.exe")], folder)
    assert [upload.path.name for upload in uploads] == ["image_000.png", "image_001.jpg"]
    assert uploads[0].name == "_script_.jpg"
    assert all(upload.path.parent == folder for upload in uploads)


def test_photographs_of_phones_are_taken(workspace, tmp_path):
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    Image.new("RGB", (64, 48)).save(tmp_path / "a.heic")
    path = uploaded(workspace, "IMG_1.HEIC", (tmp_path / "a.heic").read_bytes())
    taken = workspace.take_images([path], workspace.new_session().work / "images")
    assert taken[0].path.name == "image_000.heic" and taken[0].name == "IMG_1.HEIC"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"no image", "a.jpg is no image that can be read"),
        (b"", "a.jpg is no image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "of a format that is not taken"),
    ],
)
def test_what_is_no_image_is_named(workspace, content, expected):
    path = uploaded(workspace, "a.jpg", content)
    with pytest.raises(ValueError, match=expected):
        workspace.take_images([path], workspace.new_session().work / "images")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_enormous_images_are_refused_before_they_are_decoded(workspace, tmp_path):
    Image.new("1", (20_000, 6_000)).save(tmp_path / "a.png")
    path = uploaded(workspace, "a.png", (tmp_path / "a.png").read_bytes())
    with pytest.raises(ValueError, match="120 million pixels"):
        workspace.take_images([path], workspace.new_session().work / "images")


def test_more_images_than_allowed_are_refused(workspace):
    with pytest.raises(ValueError, match="give 200 at most"):
        workspace.take_images([ROOM[0]] * 201, workspace.new_session().work / "images")


def test_only_uploads_are_read(workspace):
    link = workspace.served / "link.jpg"
    link.symlink_to(ROOM[0])
    folder = workspace.new_session().work
    for path in (
        "/etc/passwd",
        ROOM[0],
        link,
        workspace.served / ".." / ".." / ".." / "x.jpg",
        workspace.served,
        folder,
    ):
        with pytest.raises(ValueError, match="was not uploaded") as caught:
            workspace.take_images([path], workspace.new_session().work / "images")
        assert str(path) not in str(caught.value)


def test_masks_are_of_the_images_of_their_name(workspace):
    session = workspace.new_session()
    paths = [uploaded(workspace, name) for name in ("a.jpg", "b.jpg")]
    images = workspace.take_images(paths, session.work / "images")
    masks = workspace.take_masks([uploaded(workspace, "b.png")], images, session.work / "masks")
    assert {name: mask.name for name, mask in masks.items()} == {"image_001.jpg": "b.png"}
    with pytest.raises(ValueError, match="c.png is of 0 images"):
        workspace.take_masks([uploaded(workspace, "c.png")], images, session.work / "more")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../x.jpg", "_.._x.jpg"),
        ("<script>alert(1)</script>.jpg", "_script_alert_1_script_.jpg"),
        ("Schloß 東京.jpg", "Schloß 東京.jpg"),
        ("a\nb\0c.jpg", "a_b_c.jpg"),
        ("...", "image"),
    ],
)
def test_names_to_show_are_harmless(name, expected):
    assert storage.display_name(name) == expected


def test_long_names_keep_their_ends():
    name = storage.display_name("x" * 500 + ".jpg")
    assert len(name) < 70 and name.endswith(".jpg")


def test_messages_name_files_as_their_sender_and_no_folder_of_the_server():
    upload = Upload(Path("/srv/work/abc/image_003.jpg"), "castle.jpg")
    message = "cannot read '/srv/work/abc/image_003.jpg' with /opt/models/net.pth, 3 m/s and/or"
    told = storage.in_their_words(message, [upload])
    assert told == "cannot read 'castle.jpg' with net.pth, 3 m/s and/or"


def test_the_oldest_of_the_cache_goes_first(workspace):
    for age in range(5):
        path = workspace.cache / f"network{age % 2}" / str(age)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    workspace.trim_cache(most=320)
    left = sorted(path.name for path in workspace.cache.rglob("*") if path.is_file())
    assert left == ["0", "1", "2"]


def test_everything_goes_with_the_workspace(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.new_session()
    assert workspace.root.parent == tmp_path and workspace.root.stat().st_mode & 0o077 == 0
    workspace.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="--tmp_dir .*file.* cannot be a folder"):
        Workspace(tmp_path / "file" / "sub")
