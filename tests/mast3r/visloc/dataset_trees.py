"""Writers of small trees of every layout, with random poses and points where images show them."""

from pathlib import Path

import cv2
import numpy as np
import pycolmap
import scipy.io
from PIL import ExifTags, Image
from scipy.spatial.transform import Rotation

from dust3r.utils.geometry import geotrf, inv

SIZE = (64, 48)
INTRINSICS = np.array([[50.0, 0, 30.5], [0, 52, 24.25], [0, 0, 1]])
RADIAL = "SIMPLE_RADIAL 64 48 50 31.5 24.5 -0.05"


def random_pose(rng: np.random.Generator) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix()
    pose[:3, 3] = rng.normal(size=3)
    return pose


def write_image(path: Path, size: tuple[int, int] = SIZE, orientation: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", size).save(path, exif=exif)


def write_text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def numbers(values: np.ndarray) -> str:
    return " ".join(repr(float(value)) for value in np.ravel(values))


def quaternion(pose: np.ndarray) -> np.ndarray:
    """World-to-camera (w, x, y, z)."""
    return np.roll(Rotation.from_matrix(pose[:3, :3].T).as_quat(), 1)


def write_frames(folder: Path, rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Frames of 7-Scenes' kind; their poses."""
    poses = [random_pose(rng) for _ in range(count)]
    for number, pose in enumerate(poses):
        stem = folder / f"frame-{number:06d}"
        write_image(Path(f"{stem}.color.png"))
        depth = rng.integers(500, 9000, SIZE[::-1]).astype(np.uint16)
        depth[0, :2] = 0, 65535
        cv2.imwrite(f"{stem}.depth.png", depth)
        write_text(Path(f"{stem}.pose.txt"), *map(numbers, pose))
    return poses


def seven_scenes(root: Path, rng: np.random.Generator) -> None:
    write_text(root / "TrainSplit.txt", "sequence1", "sequence3")
    write_text(root / "TestSplit.txt", "sequence2 ")
    write_text(root / "camera-intrinsics.txt", *map(numbers, INTRINSICS))
    for sequence in (1, 2, 3):
        write_frames(root / f"seq-{sequence:02d}", rng, 3)


def generic(root: Path, rng: np.random.Generator) -> None:
    scenes, images = ["kitchen", "hall"], [f"frame_{number}" for number in range(5)]
    for scene in scenes:
        for image in images:
            write_image(root / scene / "images" / f"{image}.jpg")
            (root / scene / "depth").mkdir(exist_ok=True)
            depth = rng.integers(0, 9000, SIZE[::-1]).astype(np.uint16)
            cv2.imwrite(str(root / scene / "depth" / f"{image}.png"), depth)
    np.savez(
        root / "all_metadata.npz",
        scenes=np.array(scenes),
        sceneids=np.repeat([0, 1], 5),
        images=np.array(images * 2),
        intrinsics=np.tile(INTRINSICS, (10, 1, 1)),
        trajectories=np.array([random_pose(rng) for _ in range(10)]),
        pairs=np.array([[0, 1, 0.5]]),
    )


def cambridge(root: Path, rng: np.random.Generator) -> None:
    """Points are placed by VisualSFM's formula; the model's names end in .jpg."""
    names = [f"seq{number % 2 + 1}/frame{number:05d}" for number in range(6)]
    poses = [random_pose(rng) for _ in names]
    radial = rng.uniform(-0.06, 0.06, 6) * (np.arange(6) != 2)
    cameras, points = [], []
    for index, (name, pose) in enumerate(zip(names, poses, strict=True)):
        write_image(root / f"{name}.png")
        camera = [50.0, *quaternion(pose), *pose[:3, 3], radial[index], 0]
        cameras.append(f"{name}.jpg\t{numbers(np.array(camera))}")
        for place in rng.uniform(-1, 1, (7, 2)) * (32, 24):
            seen = place / 50
            ray = np.append(seen * (1 + radial[index] * (seen @ seen)), 1)
            point = geotrf(pose, (ray * rng.uniform(1, 9))[None])[0]
            points.append(f"{numbers(point)} 9 9 9 1 {index} 0 {numbers(place)}")
    rng.shuffle(points)
    write_text(
        root / "reconstruction.nvm", "NVM_V3 ", "", "6", *cameras, "", "42", *points, "", "0"
    )
    head = ["Visual Landmark Dataset V1", "ImageFile, Camera Position [X Y Z W P Q R]", ""]
    lines = [
        f"{name}.png {numbers(pose[:3, 3])} {numbers(quaternion(pose))}"
        for name, pose in zip(names, poses, strict=True)
    ]
    write_text(root / "dataset_train.txt", *head, *lines[:4])
    write_text(root / "dataset_test.txt", *head, *lines[4:])


def write_model(folder: Path, names: list[str], rng: np.random.Generator) -> None:
    """A COLMAP model with distortion and seven points in every image."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=SIZE[0], height=SIZE[1], camera_id=1)
    camera.params = [50, 31.5, 24.5, -0.05]
    model.add_camera_with_trivial_rig(camera)
    for image_id, name in enumerate(names, 1):
        pose = random_pose(rng)
        world_to_camera = inv(pose)
        pixels = rng.uniform(0, 1, (8, 2)) * SIZE
        rays = np.append(camera.cam_from_img(pixels), np.ones((8, 1)), 1)
        model.add_image_with_trivial_frame(
            pycolmap.Image(name=name, keypoints=pixels, camera_id=1, image_id=image_id),
            pycolmap.Rigid3d(pycolmap.Rotation3d(world_to_camera[:3, :3]), world_to_camera[:3, 3]),
        )
        for row, point in enumerate(geotrf(pose, rays * rng.uniform(1, 9, (8, 1)))[:7]):
            track = pycolmap.Track()
            track.add_element(image_id, row)
            model.add_point3D(point, track)
    folder.mkdir(parents=True, exist_ok=True)
    model.write_binary(folder)


def colmap(root: Path, rng: np.random.Generator) -> None:
    names = [f"left/{number}.jpg" for number in range(5)]
    write_model(root / "sparse" / "0", names[:4], rng)
    write_model(root / "truth", names[3:], rng)
    for name in names:
        write_image(root / "images" / name)
    write_text(root / "queries.txt", "# name", f"left/4.jpg {RADIAL}")


def aachen(root: Path, rng: np.random.Generator) -> None:
    write_model(root / "3D-models" / "aachen_v_1_1", ["db/1.jpg", "db/2.jpg", "db/10.jpg"], rng)
    upright = root / "images" / "images_upright"
    queries = {"day": "query/day/milestone/a.jpg", "night": "query/night/nexus5x/b.jpg"}
    for name in ("db/1.jpg", "db/2.jpg", "db/10.jpg", *queries.values()):
        write_image(upright / name)
    for group, name in queries.items():
        path = root / "queries" / f"{group}_time_queries_with_intrinsics.txt"
        write_text(path, f"{name} {RADIAL}")


def inloc(root: Path, rng: np.random.Generator) -> None:
    """Two cut-outs of a scan whose first pixels have no point."""
    for number in (0, 30):
        cutout = root / f"database/cutouts/DUC1/001/DUC_cutout_001_{number}_0.jpg"
        write_image(cutout)
        points = np.arange(1.0, 1 + SIZE[0] * SIZE[1] * 3).reshape(*SIZE[::-1], 3)
        points[0, :2] = [[np.nan], [0]]
        stored = {"XYZcut": points, "RGBcut": np.zeros((*SIZE[::-1], 3), np.uint8)}
        scipy.io.savemat(f"{cutout}.mat", stored, do_compression=True)
    folder = root / "database" / "alignments" / "DUC1" / "transformations"
    matrices = [list(map(numbers, random_pose(rng))) for _ in range(2)]
    lines = ["before", *matrices[0], "", "after", *matrices[1]]
    write_text(folder / "DUC_trans_001.txt", *lines)
    write_image(root / "query" / "iphone7" / "IMG_0731.JPG", (SIZE[1], SIZE[0]), orientation=6)
    write_image(root / "query" / "iphone7" / "IMG_0732.JPG", SIZE)


WRITERS = {
    "aachen": aachen,
    "cambridge": cambridge,
    "colmap": colmap,
    "generic": generic,
    "inloc": inloc,
    "seven_scenes": seven_scenes,
}
