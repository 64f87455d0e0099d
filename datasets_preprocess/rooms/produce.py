"""One whole synthetic scene: furnish a room, walk through it, render, choose pairs, write."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets_preprocess.layout import (
    SceneData,
    depth_path,
    image_path,
    new_scene,
    save_scene,
    write_depth,
    write_image,
)
from datasets_preprocess.overlap import choose_pairs
from datasets_preprocess.rooms.render import Renderer, Sensor
from datasets_preprocess.rooms.scene import Room, make_room, random_size
from datasets_preprocess.rooms.walk import make_walk
from dust3r.utils.reprojection import shrink

_OVERLAP_PIXELS = 56
_PLAIN = ("wall", "ceiling")


@dataclass(frozen=True)
class Recipe:
    """What scenes are like. Scene k depends on the recipe and k alone.

    ``resolution`` (width, height) in pixels, multiples of 16; ``fov`` the range, in degrees, of the
    field of view along the longer side, drawn once a scene; ``max_pairs`` per scene, None for all
    pairs with an overlap of 0.2 to 0.9; ``plain_walls`` takes the textures of walls and ceilings
    away, and changes nothing else. Raises ValueError for what cannot be.
    """

    images_per_scene: int = 25
    resolution: tuple[int, int] = (224, 224)
    fov: tuple[float, float] = (50.0, 75.0)
    seed: int = 0
    max_pairs: int | None = None
    plain_walls: bool = False

    def __post_init__(self) -> None:
        if self.images_per_scene < 2:
            raise ValueError(
                f"images_per_scene must be 2 or more to make pairs, got {self.images_per_scene}"
            )
        if any(side < 16 or side % 16 for side in self.resolution):
            near = tuple(max(16, round(side / 16) * 16) for side in self.resolution)
            raise ValueError(
                "resolution must be positive multiples of 16 (the networks' patch size), got "
                f"{self.resolution[0]} x {self.resolution[1]}; {near[0]} x {near[1]} is near"
            )
        if not 20 <= self.fov[0] <= self.fov[1] <= 120:
            raise ValueError(
                "fov must be degrees from 20 to 120, the smaller first, got "
                f"{self.fov[0]} and {self.fov[1]}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        if self.max_pairs is not None and self.max_pairs < 1:
            raise ValueError(f"max_pairs must be 1 or more, or left out, got {self.max_pairs}")

    def scene_name(self, number: int) -> str:
        """Folder of scene ``number``; it holds the seed, so that runs can share a ROOT."""
        return f"room_{self.seed}_{number:05d}"


@dataclass(frozen=True, eq=False)
class Shoot:
    """A furnished room with its camera: ``intrinsics`` (3, 3) pixels, ``poses`` (n, 4, 4)."""

    room: Room
    sensor: Sensor
    intrinsics: np.ndarray
    poses: np.ndarray
    noise_seeds: tuple[np.random.SeedSequence, ...]


def plan_scene(recipe: Recipe, number: int) -> Shoot:
    """Draw everything about scene ``number``; nothing is rendered yet."""
    seeds = np.random.SeedSequence([recipe.seed, number]).spawn(4)
    walk_rng, room_rng, camera_rng = map(np.random.default_rng, seeds[:3])
    size = random_size(walk_rng)
    poses = make_walk(walk_rng, size, recipe.images_per_scene)
    intrinsics = random_intrinsics(camera_rng, recipe)
    return Shoot(
        make_room(room_rng, size, poses, _PLAIN if recipe.plain_walls else ()),
        Sensor.random(camera_rng),
        intrinsics,
        poses,
        tuple(seeds[3].spawn(len(poses))),
    )


def random_intrinsics(rng: np.random.Generator, recipe: Recipe) -> np.ndarray:
    """(3, 3) pixels of a camera as the recipe has them, the principal point in the middle."""
    width, height = recipe.resolution
    fov = np.radians(rng.uniform(*recipe.fov))
    focal = max(width, height) / 2 / np.tan(fov / 2)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])


def make_scene(root: str | Path, recipe: Recipe, number: int) -> SceneData:
    """Render scene ``number`` into ``ROOT/<scene>`` and return its part of the metadata."""
    return write_shoot(root, recipe.scene_name(number), plan_scene(recipe, number), recipe)


def write_shoot(
    root: str | Path, name: str, shoot: Shoot, recipe: Recipe, *, progress: bool = False
) -> SceneData:
    """Render a planned scene into ``ROOT/<name>`` and return its part of the metadata."""
    # The scenes keep the cores busy; threads inside one would only get in their way.
    cv2.setNumThreads(1)
    width, height = recipe.resolution
    renderer = Renderer(shoot.room, shoot.sensor)
    basenames = [f"frame_{i:05d}" for i in range(len(shoot.poses))]
    stride = max(1, max(width, height) // _OVERLAP_PIXELS)
    small_depths = []
    with new_scene(root, name) as folder:
        frames = zip(basenames, shoot.poses, shoot.noise_seeds, strict=True)
        bar = tqdm(frames, name, len(basenames), unit="image", disable=not progress)
        for basename, pose, seed in bar:
            image, depth = renderer.render(
                shoot.intrinsics, pose, width, height, np.random.default_rng(seed)
            )
            write_image(image_path(folder.parent, folder.name, basename), image)
            write_depth(depth_path(folder.parent, folder.name, basename), depth)
            small_depth, small_intrinsics = shrink(depth, shoot.intrinsics, stride)
            small_depths.append(small_depth)
        count = len(basenames)
        pairs = choose_pairs(
            np.stack(small_depths),
            np.tile(small_intrinsics, (count, 1, 1)),
            shoot.poses,
            max_pairs=recipe.max_pairs,
            seed=recipe.seed,
        )
        intrinsics = np.tile(shoot.intrinsics, (count, 1, 1))
        scene = SceneData(name, basenames, intrinsics, shoot.poses, pairs)
        save_scene(folder, scene)
    return scene
