"""How well images of different scenes are told apart before a reconstruction.

python scripts/eval_overlap.py --root ROOT [--own 6 --foreign 3 --step 3]

Of every scene of a processed data set, every few frames are mixed with some of the next scene's.
"""

import argparse
from pathlib import Path

from eval_reconstruction import paths
from tqdm import tqdm

from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.image_pairs import make_pairs
from dust3r.overlap import overlapping_parts
from dust3r.utils.image import load_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="a processed data set")
    parser.add_argument("--own", type=int, default=6, help="images of a scene")
    parser.add_argument("--foreign", type=int, default=3, help="images of the next scene")
    parser.add_argument("--step", type=int, default=3, help="from frame to frame")
    args = parser.parse_args()
    dataset = ScanNetpp("all", args.root, 224)
    lost = joined = 0
    count = len(dataset.scenes)
    for scene in tqdm(range(count)):
        chosen = []
        for number, most in ((scene, args.own), ((scene + 1) % count, args.foreign)):
            frames = [n for n, of in enumerate(dataset.sceneids) if of == number]
            chosen += frames[:: args.step][:most]
        images = load_images([paths(dataset, n)[0] for n in chosen], 224, verbose=False)
        parts = [set(part) for part in overlapping_parts(images, make_pairs(images))]
        own = set(range(args.own))
        home = max(parts, key=lambda part: len(part & own))
        lost += len(own - home)
        joined += bool(home - own)
    print(f"{lost} of {count * args.own} images parted from their scene")
    print(f"{joined} of {count} scenes with an image of another")


if __name__ == "__main__":
    main()
