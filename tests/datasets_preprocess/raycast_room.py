"""A ray-cast room of exact depth, written as raw RGB-D recordings and checked once processed."""

from pathlib import Path

import cv2
import numpy as np

from datasets_preprocess.layout import depth_path, image_path, read_depth, read_metadata
from datasets_preprocess.rgbd.formats import intrinsics_matrix
from dust3r.utils.geometry import depthmap_to_pts3d, geotrf, inv, project

ROOM = np.array([[-2.0, -1.3, -1.5], [2.0, 1.2, 2.5]])
CHEST = np.array([[0.2, 0.2, 1.2], [1.0, 1.2, 1.9]])
SIZE = (72, 96)
CAMERA = intrinsics_matrix(80.0, 82.0, 48.3, 35.2)


def walk(count: int = 5) -> np.ndarray:
    """Camera-to-world poses that turn and step through the room, level on purpose not."""
    poses = []
    for k in range(count):
        yaw, pitch = np.radians(9 * k - 10), np.radians(4 + k)
        turn = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
        tilt = [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
        pose = np.eye(4)
        pose[:3, :3] = np.array(turn) @ np.array(tilt)
        pose[:3, 3] = 0.08 * k - 0.2, 0.03 * k, -0.5 + 0.05 * k
        poses.append(pose)
    return np.stack(poses)


def surface(origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance in units of ``rays`` (..., 3) to the room or the chest in it, and which it is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        far = (np.where(rays > 0, ROOM[1], ROOM[0]) - origin) / rays
        near_side = (np.where(rays > 0, CHEST[0], CHEST[1]) - origin) / rays
        far_side = (np.where(rays > 0, CHEST[1], CHEST[0]) - origin) / rays
    wall, enter, leave = far.min(-1), near_side.max(-1), far_side.min(-1)
    chest = (enter < leave) & (enter > 0)
    return np.where(chest, enter, wall), chest


def paint(points: np.ndarray, chest: np.ndarray) -> np.ndarray:
    """Colour of world points: waves of 30 to 60 cm, and the chest brighter than the room."""
    x, y, z = np.moveaxis(points, -1, 0)
    waves = [np.sin(13 * x + 3 * y), np.sin(11 * y + 4 * z), np.sin(12 * z + 5 * x)]
    base = np.where(chest, 170, 90)[..., None]
    return (base + 50 * np.stack(waves, -1)).round().astype(np.uint8)


def render(
    intrinsics: np.ndarray, pose: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Exact RGB (H, W, 3) uint8 and depth (H, W) metres of the room."""
    points = depthmap_to_pts3d(np.ones(size), intrinsics, pose)
    rays = points - pose[:3, 3]
    depth, chest = surface(pose[:3, 3], rays)
    return paint(pose[:3, 3] + rays * depth[..., None], chest), depth


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def millimetres(depth: np.ndarray) -> np.ndarray:
    return (1000 * depth).round().astype(np.uint16)


def write_seven_scenes(
    folder: Path, poses: np.ndarray, camera: np.ndarray = CAMERA, size: tuple[int, int] = SIZE
) -> Path:
    for k, pose in enumerate(poses):
        rgb, depth = render(camera, pose, size)
        write_png(folder / f"frame-{k:06d}.color.png", rgb[..., ::-1])
        stored = millimetres(depth)
        stored[:4] = 65535
        write_png(folder / f"frame-{k:06d}.depth.png", stored)
        np.savetxt(folder / f"frame-{k:06d}.pose.txt", pose)
    np.savetxt(folder / "camera-intrinsics.txt", camera)
    return folder


def write_scannet(
    folder: Path, poses: np.ndarray, colour: np.ndarray, colour_size: tuple[int, int]
) -> Path:
    for k, pose in enumerate(poses):
        write_png(folder / "color" / f"{k}.png", render(colour, pose, colour_size)[0][..., ::-1])
        write_png(folder / "depth" / f"{k}.png", millimetres(render(CAMERA, pose, SIZE)[1]))
        (folder / "pose").mkdir(exist_ok=True)
        np.savetxt(folder / "pose" / f"{k}.txt", pose)
    (folder / "intrinsic").mkdir()
    for name, camera in (("color", colour), ("depth", CAMERA)):
        wide = np.eye(4)
        wide[:3, :3] = camera
        np.savetxt(folder / "intrinsic" / f"intrinsic_{name}.txt", wide)
    return folder


def write_sun3d(folder: Path, poses: np.ndarray, depth_delay: int = 9000) -> Path:
    """Images every 33 ms; depth of the same moment stamped a little later, and one extra first."""
    for k, pose in enumerate(poses):
        rgb, depth = render(CAMERA, pose, SIZE)
        time = 50000 + 33333 * k
        write_png(folder / "image" / f"{k + 1:07d}-{time:012d}.png", rgb[..., ::-1])
        stored = millimetres(depth)
        rotated = (stored << 3) | (stored >> 13)
        write_png(folder / "depth" / f"{k + 2:07d}-{time + depth_delay:012d}.png", rotated)
    write_png(folder / "depth" / "0000001-000000025000.png", np.zeros(SIZE, np.uint16))
    (folder / "extrinsics").mkdir()
    np.savetxt(folder / "extrinsics" / "20130101.txt", np.zeros((3, 4)))
    np.savetxt(folder / "extrinsics" / "20140101.txt", poses[:, :3].reshape(-1, 4), fmt="%.9f")
    np.savetxt(folder / "intrinsics.txt", CAMERA)
    return folder


def check_scene(root: Path, name: str, poses: np.ndarray, *, crop: int = 6) -> None:
    """Depth, intrinsics, poses and colours of a processed scene are those of the room.

    Depth to a millimetre, points carried into the next view to half a pixel, colours to a shift
    below a quarter of a pixel in every quadrant.
    """
    index = read_metadata(root)
    scene = index.scenes.tolist().index(name)
    frames = np.flatnonzero(index.sceneids == scene)
    assert len(frames) == len(poses)
    for place, k in enumerate(frames):
        pose, intrinsics = index.trajectories[k].astype(float), index.intrinsics[k].astype(float)
        np.testing.assert_allclose(pose, poses[place], atol=1e-6)
        depth = read_depth(depth_path(root, name, index.images[k])).astype(float)
        exact_rgb, exact_depth = render(intrinsics, poses[place], depth.shape)
        valid = depth > 0
        assert valid.mean() > 0.8
        # At an edge either surface may be stored; elsewhere depth is that of the pixel's ray.
        smooth = cv2.dilate(exact_depth, np.ones((3, 3))) - cv2.erode(exact_depth, np.ones((3, 3)))
        steady = valid & (smooth < 0.1)
        assert abs(depth - exact_depth)[steady].max() < 0.02
        assert np.median(abs(depth - exact_depth)[valid]) < 0.001 + 0.01 * (depth.shape != SIZE)

        neighbour = inv(poses[place - 1 if place else 1])
        world = depthmap_to_pts3d(depth, intrinsics, pose)
        exact_world = depthmap_to_pts3d(exact_depth, intrinsics, poses[place])
        there, _ = project(geotrf(neighbour, world), intrinsics)
        exact_there, z = project(geotrf(neighbour, exact_world), intrinsics)
        inside = ((exact_there >= 0) & (exact_there < depth.shape[::-1])).all(-1)
        shared = steady & inside & (z > 0)
        assert shared.mean() > 0.2
        assert np.linalg.norm(there - exact_there, axis=-1)[shared].max() < 0.5

        stored = cv2.imread(str(image_path(root, name, index.images[k])))[..., ::-1]
        assert stored.shape == (*depth.shape, 3)
        shift = _quadrant_shifts(stored[crop:-crop, crop:-crop], exact_rgb[crop:-crop, crop:-crop])
        assert shift < 0.25


def _quadrant_shifts(image: np.ndarray, expected: np.ndarray) -> float:
    """Largest displacement, in pixels, that explains the difference of two images, by quadrant."""
    image, expected = (cv2.GaussianBlur(a, (0, 0), 1).astype(float) for a in (image, expected))
    down, right, _ = np.gradient(expected)
    half_h, half_w = expected.shape[0] // 2, expected.shape[1] // 2
    shifts = []
    for rows in (slice(half_h), slice(half_h, None)):
        for columns in (slice(half_w), slice(half_w, None)):
            slopes = np.stack([g[rows, columns].ravel() for g in (right, down)], 1)
            difference = (expected - image)[rows, columns].ravel()
            shifts.append(np.linalg.norm(np.linalg.lstsq(slopes, difference, rcond=None)[0]))
    return max(shifts)


def write_unregistered(folder: Path, poses: np.ndarray) -> tuple[Path, np.ndarray]:
    """7-Scenes' own depth camera, with colour from a Kinect's other lens 25 mm to the right."""
    camera, size = intrinsics_matrix(585, 585, 320, 240), (480, 640)
    write_seven_scenes(folder, poses, camera, size)
    for k, pose in enumerate(poses):
        beside = pose.copy()
        beside[:3, 3] += pose[:3, 0] * 0.025
        rgb, _ = render(intrinsics_matrix(525, 525, 320, 240), beside, size)
        write_png(folder / f"frame-{k:06d}.color.png", rgb[..., ::-1])
    return folder, camera
