"""Loading photographs: sizes, orientation, where pixels come from, masks, and what is refused."""

import json
import logging
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dust3r.reconstruction import Source
from dust3r.utils import pixels
from dust3r.utils.image import load_images, rgb

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "load_images.json").read_text())
ORIENTATION = 0x0112


def load(items, size=64, **kwargs):
    return load_images(items, size, verbose=False, **kwargs)


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ramp(width, height):
    """An image whose red is its column and whose green is its row, both in steps of a half."""
    v, u = np.mgrid[:height, :width]
    return np.stack([u // 2, v // 2, np.zeros_like(u)], -1).astype(np.uint8)


def save(path, array, orientation=None, **kwargs):
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    Image.fromarray(array).save(path, exif=exif, **kwargs)
    return path


def png_header(path, width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    ends = chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ends)
    return path


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: "{width}x{height}@{size}".format(**c))
def test_published_sizes(case):
    black = np.zeros((case["height"], case["width"], 3), np.uint8)
    (view,) = load([black], case["size"], square_ok=case["square_ok"])
    assert list(view["img"].shape) == case["img"]
    assert view["true_shape"].tolist() == [case["true_shape"]]
    assert view["true_shape"].dtype == np.int32


def test_a_view_has_what_the_network_and_the_reconstruction_need(tmp_path):
    save(tmp_path / "a.png", noise(64, 48))
    save(tmp_path / "b.png", noise(64, 48))
    views = load(tmp_path)
    assert [(v["idx"], v["instance"]) for v in views] == [(0, "0"), (1, "1")]
    img = views[0]["img"]
    assert img.shape == (1, 3, 48, 64) and img.dtype == torch.float32
    np.testing.assert_allclose(rgb(img[0]), noise(64, 48) / 255, atol=1e-6)
    source = views[0]["source"]
    assert isinstance(source, Source) and source.name == "a.png"
    assert source.path == tmp_path / "a.png" and source.size == (64, 48)
    assert "mask" not in views[0]


@pytest.mark.parametrize("size", [64, 96, 224])
@pytest.mark.parametrize("shape", [(200, 150), (151, 203), (120, 120), (211, 140)])
def test_pixels_are_traced_to_the_original(shape, size):
    (view,) = load([ramp(*shape)], size)
    seen = np.asarray(view["img"][0, :2] * 127.5 + 127.5).transpose(1, 2, 0)
    height, width = seen.shape[:2]
    v, u = np.mgrid[:height, :width]
    traced = np.stack([u, v, np.ones_like(u)], -1) @ view["source"].to_original.T
    # A step of the ramp is two pixels wide, and its middle half a pixel on.
    expected = (traced[..., :2] - 0.5) / 2
    inner = (slice(8, -8), slice(8, -8))
    assert np.abs(seen - expected)[inner].max() < 1.5
    assert np.abs((seen - expected)[inner].mean((0, 1))).max() < 0.1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_come_upright(tmp_path, orientation):
    """Pixels are stored turned such that the tag undoes it; TIFF, where Pillow turns by itself."""
    upright = Image.fromarray(noise(64, 48))
    turn = pixels._TURNS.get(orientation)
    undo = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    stored = upright if turn is None else upright.transpose(undo.get(turn, turn))
    for suffix in ("png", "tif"):
        path = save(tmp_path / f"a.{suffix}", np.asarray(stored), orientation)
        for item in (path, Image.open(path)):
            (view,) = load([item])
            assert view["source"].size == (64, 48)
            np.testing.assert_allclose(rgb(view["img"][0]), noise(64, 48) / 255, atol=1e-6)


def test_exif_orientation_means_what_the_standard_says(tmp_path):
    """6: the first row is the right side of what is seen."""
    stored = np.zeros((64, 64, 3), np.uint8)
    stored[:8] = 255
    (view,) = load([save(tmp_path / "a.png", stored, 6)], square_ok=True)
    assert (view["img"][..., -8:] == 1).all() and (view["img"][..., :-8] == -1).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_tag_does_not_cost_the_photograph(tmp_path):
    damaged = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\xff\xff"
    Image.fromarray(noise(64, 48)).save(tmp_path / "a.jpg", exif=damaged)
    assert load([tmp_path / "a.jpg"])[0]["img"].shape == (1, 3, 48, 64)


def test_folders_are_read_in_natural_order_and_other_files_ignored(tmp_path, caplog):
    for name in ("img10.png", "img2.PNG", "img1.png", "._img3.png"):
        save(tmp_path / name, noise(64, 48))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "sub.png").mkdir()
    with caplog.at_level(logging.DEBUG, "dust3r"):
        names = [view["source"].name for view in load(str(tmp_path))]
    assert names == ["img1.png", "img2.PNG", "img10.png"]
    assert "notes.txt is not taken for an image" in caplog.text


def test_lists_mix_files_images_arrays_sizes_and_orientations(tmp_path):
    path = save(tmp_path / "a.png", noise(100, 60))
    views = load([str(path), path, Image.fromarray(noise(60, 100)), noise(80, 80)])
    assert [v["true_shape"].tolist() for v in views] == [[[32, 64]]] * 2 + [[[64, 32]], [[48, 64]]]
    assert views[0]["source"].path == path and views[2]["source"].path is None
    assert [v["source"].name for v in load(path)] == ["a.png"]
    assert [v["source"].name for v in load(Image.open(path))] == ["a.png"]


def test_names_are_unique(tmp_path):
    paths = []
    for folder, name in (("x", "a.png"), ("y", "a.png"), ("x", "a_2.png"), ("z", "A.png")):
        (tmp_path / folder).mkdir(exist_ok=True)
        paths.append(save(tmp_path / folder / name, noise(64, 48)))
    names = [view["source"].name for view in load(paths)]
    assert names == ["a.png", "a_3.png", "a_2.png", "A_4.png"]
    assert [v["source"].name for v in load([noise(64, 48)] * 2)] == [
        "image_000.png",
        "image_001.png",
    ]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA"])
def test_modes_become_rgb(mode):
    grey = np.repeat(noise(64, 48)[..., :1] // 128 * 255, 3, axis=2)
    (view,) = load([Image.fromarray(grey).convert(mode)])
    np.testing.assert_allclose(rgb(view["img"][0]), grey / 255, atol=0.02)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bits_keep_their_range(tmp_path, dtype):
    steps = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(dtype)
    Image.fromarray(steps).save(tmp_path / "a.tif")
    shown = rgb(load([tmp_path / "a.tif"])[0]["img"][0])
    np.testing.assert_allclose(shown[..., 0], steps / 65535, atol=1 / 255)


def test_what_is_transparent_comes_out_white(tmp_path):
    rgba = np.dstack([noise(64, 48), np.full((48, 64), 255, np.uint8)])
    rgba[:, :32, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    shown = rgb(load([tmp_path / "a.png"])[0]["img"][0])
    assert (shown[:, :32] == 1).all()
    np.testing.assert_allclose(shown[:, 32:], noise(64, 48)[:, 32:] / 255, atol=1e-6)
    palette = Image.fromarray(noise(64, 48)).quantize(16)
    palette.info["transparency"] = bytes([0] * 16)
    palette.save(tmp_path / "p.png")
    assert (load([tmp_path / "p.png"])[0]["img"] == 1).all()


def test_heif_is_read_upright_where_the_library_is_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:16] = 255
    path = tmp_path / "a.heic"
    heif.from_pillow(Image.fromarray(stored)).save(path, quality=-1, exif=exif.tobytes())
    (view,) = load(tmp_path)
    assert view["source"].name == "a.heic" and view["source"].size == (48, 64)
    assert view["img"][..., -16:].min() > 0.9 and view["img"][..., :-16].max() < -0.9


def test_heif_without_the_library_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "phone.jpg"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    pixels._can_read_heif.cache_clear()
    with pytest.raises(ValueError, match="phone.jpg.*install pillow-heif"):
        load([path])
    pixels._can_read_heif.cache_clear()


def test_masks_follow_resize_and_crop():
    image = noise(160, 100)
    mask = np.zeros((100, 160))
    mask[:, 80:] = 0.3
    (view,) = load([image], masks=[mask])
    assert view["mask"].shape == (1, 32, 64) and view["mask"].dtype == torch.bool
    assert view["mask"][0, :, 32:].all() and not view["mask"][0, :, :32].any()
    (square,) = load([image], 224, masks=[mask])
    assert square["mask"].shape == (1, 224, 224)
    assert square["mask"][0, :, 112:].all() and not square["mask"][0, :, :112].any()


def test_masks_shrink_by_majority():
    used = np.zeros((96, 128), bool)
    used[::2] = used[:, ::2] = True
    assert load([noise(128, 96)], masks=[used])[0]["mask"].all()
    assert not load([noise(128, 96)], masks=[~used])[0]["mask"].any()


@pytest.mark.parametrize(("masked", "fill"), [("white", 1), ("black", -1), ("keep", None)])
def test_what_the_network_sees_of_masked_pixels(masked, fill):
    image, mask = noise(64, 48), np.arange(48 * 64).reshape(48, 64) % 3
    (plain,) = load([image])
    (view,) = load([image], masks=[mask], masked=masked)
    used = view["mask"][:, None].expand(1, 3, -1, -1)
    assert torch.equal(used[0, 0], torch.from_numpy(mask != 0))
    assert torch.equal(view["img"][used], plain["img"][used])
    expected = plain["img"][~used] if fill is None else torch.full_like(plain["img"][~used], fill)
    assert torch.equal(view["img"][~used], expected)


def test_masks_come_from_folders_dictionaries_and_lists(tmp_path, caplog):
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    half = np.zeros((48, 64), np.uint8)
    half[:24] = 1
    for name in ("a.png", "b.png", "c.png"):
        save(images / name, noise(64, 48))
    save(masks / "a.png", half)
    Image.fromarray(np.dstack([noise(64, 48), half * 255])).save(masks / "b.png.png")
    with caplog.at_level(logging.WARNING):
        from_folder = load(images, masks=masks)
    assert "for c.png" in caplog.text
    by_name = load(images, masks={"a.png": half, "b.png": masks / "b.png.png"})
    listed = load(images, masks=[half > 0, str(masks / "a.png"), None])
    for views in (from_folder, by_name, listed):
        for view in views[:2]:
            assert torch.equal(view["mask"][0], torch.from_numpy(half > 0))
        assert "mask" not in views[2]


def test_masks_of_jpeg_are_divided_at_the_middle_and_of_sixteen_bits_at_zero(tmp_path):
    half = np.zeros((48, 64), np.uint8)
    half[:, 29:] = 255
    save(tmp_path / "m.jpg", half, quality=60)
    assert np.asarray(Image.open(tmp_path / "m.jpg"))[:, :29].any()
    (view,) = load([noise(64, 48)], masks=[tmp_path / "m.jpg"])
    assert torch.equal(view["mask"][0], torch.from_numpy(half > 0))
    Image.fromarray((half > 0).astype(np.uint16)).save(tmp_path / "m.png")
    (view,) = load([noise(64, 48)], masks=[tmp_path / "m.png"])
    assert torch.equal(view["mask"][0], torch.from_numpy(half > 0))


def test_masks_of_rotated_photographs_are_upright_or_as_stored(tmp_path):
    stored = noise(64, 48)
    path = save(tmp_path / "a.png", stored, 6)
    upright = np.zeros((64, 48), bool)
    upright[:20, :10] = True
    as_stored = np.rot90(upright)  # 6 turns clockwise what is stored
    views = [load([path], masks=[mask])[0] for mask in (upright, as_stored)]
    for view in views:
        assert torch.equal(view["mask"][0], torch.from_numpy(upright))


def test_a_mask_of_everything_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        load([noise(64, 48)], masks=[np.zeros((48, 64))])
    assert "leaves nothing" in caplog.text


def test_wrong_masks_are_refused(tmp_path):
    image, mask = noise(64, 48), np.ones((48, 64))
    save(tmp_path / "other.png", image)
    for masks, message in (
        ([np.ones((64, 48))], r"48x64 pixels.*image 64x48 \(width x height"),
        ([np.ones((48, 64, 1))], r"shape \(48, 64, 1\): give it as \(H, W\)"),
        ([mask, mask], "2 masks for 1 images"),
        ({"image_00.png": mask}, "mask for 'image_00.png'.*did you mean 'image_000.png'"),
        ({7: mask}, "mask for 7, which is no image; images are image_000.png"),
        (tmp_path, "no mask in .* image_000.png for image_000.png"),
    ):
        with pytest.raises(ValueError, match=message):
            load([image], masks=masks)
    with pytest.raises(FileNotFoundError, match="no folder of masks"):
        load([image], masks=tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="absent.png"):
        load([image], masks=[tmp_path / "absent.png"])
    with pytest.raises(ValueError, match="share the mask"):
        load([tmp_path / "other.png"] * 2, masks=tmp_path)


def test_missing_files_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of images .*absent"):
        load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no image file .*absent.jpg"):
        load([tmp_path / "absent.jpg"])
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ValueError, match=r"holds no image \(.jpg"):
        load(tmp_path)
    with pytest.raises(ValueError, match="list of images is empty"):
        load([])


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("this is no photograph")
    (tmp_path / "empty.jpg").touch()
    save(tmp_path / "cut.jpg", noise(64, 48))
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "drawing.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("text", "empty", "cut", "drawing"):
        with pytest.raises(ValueError, match=f"cannot read the image .*{name}.jpg"):
            load([tmp_path / f"{name}.jpg"])
    Image.fromarray(np.full((48, 64), 0.5, np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="float.tif.*32 bits"):
        load([tmp_path / "float.tif"])


@pytest.mark.parametrize("size", [(12_500, 12_500), (20_000, 20_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_by_their_header(tmp_path, size):
    path = png_header(tmp_path / "bomb.png", *size)
    limit = Image.MAX_IMAGE_PIXELS
    for read in (lambda: load([path]), lambda: load([noise(64, 48)], masks=[path])):
        with pytest.raises(ValueError, match="bomb.png is too large.*150 million.*resize"):
            read()
    assert limit == Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_warning_that_is_an_error_is_one_of_ours(tmp_path):
    with pytest.raises(ValueError, match="bomb.png is too large"):
        load([png_header(tmp_path / "bomb.png", 10_000, 10_000)])


@pytest.mark.parametrize("shape", [(640, 9), (5, 5), (2000, 50), (17, 2000)])
@pytest.mark.parametrize("size", [512, 224])
def test_images_without_room_for_a_patch_are_refused(shape, size):
    with pytest.raises(ValueError, match=f"image_000.png of {shape[0]}x{shape[1]}.*too thin"):
        load([noise(*shape)], size)


def test_the_thinnest_image_keeps_one_patch():
    assert load([noise(512, 16)], 512)[0]["true_shape"].tolist() == [[16, 512]]
    assert load([noise(16, 16)], 16)[0]["true_shape"].tolist() == [[16, 16]]


def test_impossible_arguments_are_refused():
    image = noise(64, 48)
    for size, patch in ((500, 16), (512, 14), (0, 16), (-16, 16), (16, 0)):
        with pytest.raises(ValueError, match=f"size={size} is not a multiple of .*{patch}"):
            load([image], size, patch_size=patch)
    assert load([image], 56, patch_size=14)[0]["true_shape"].tolist() == [[42, 56]]
    with pytest.raises(ValueError, match="masked='grey' is none of 'keep', 'white', 'black'"):
        load([image], masked="grey")
    for item, message in (
        (image[..., 0], r"array of shape \(48, 64\)"),
        (image.astype(np.float32), "type float32"),
        (7, "is of type int: give files"),
    ):
        with pytest.raises(ValueError, match=message):
            load([item])


def test_progress_is_shown_where_wanted(capsys, caplog):
    with caplog.at_level(logging.INFO, "dust3r"):
        load_images([noise(100, 60)], 64)
        assert "image_000.png: 100x60, seen as 64x32" in caplog.text
        assert "images" in capsys.readouterr().err
        caplog.clear()
        load([noise(100, 60)])
        assert not caplog.text and not any(capsys.readouterr())
