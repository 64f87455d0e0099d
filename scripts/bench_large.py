"""Memory, seconds and errors of aligning many images.

python scripts/bench_large.py --images 50 --scene_graph complete
python scripts/bench_large.py --images 500 --scene_graph swin-5-noncyclic

Views of one synthetic room, 224x168, 1 % noise; the pairs' own arrays are part of the memory.
"""

import argparse
import resource
import time
from dataclasses import replace

import numpy as np
from alignment_problems import focal_errors, noisy_pairs, pose_errors, room

from dust3r.cloud_opt import global_aligner
from dust3r.image_pairs import make_pairs

# Rooms are rendered in whole patches; the last rows are cut off.
RENDERED, HEIGHT = (224, 176), 168


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--scene_graph", default="complete", help="as of make_pairs")
    args = parser.parse_args()
    truth = room(0, args.images, RENDERED, step=1)
    truth = replace(truth, depths=truth.depths[:, :HEIGHT])
    views = [{"idx": n} for n in range(args.images)]
    edges = [(a["idx"], b["idx"]) for a, b in make_pairs(views, args.scene_graph)]
    output = noisy_pairs(truth, 0.01, edges=edges)
    predictions = [tensor for key in ("pred1", "pred2") for tensor in output[key].values()]
    given = sum(tensor.nbytes for tensor in predictions) / 2**30
    print(f"{args.images} images, {len(edges)} pairs, {given:.2f} GiB", flush=True)

    start = time.perf_counter()
    scene = global_aligner(output, verbose=False)
    scene.compute_global_alignment()
    aligned = time.perf_counter()
    scene.get_depthmaps()
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rotation, direction = pose_errors(scene.get_im_poses().double().numpy(), truth.poses)
    focal = focal_errors(scene.get_focals()[:, 0], truth.focals)
    print(
        f"alignment {aligned - start:.0f} s, depth maps {ended - aligned:.0f} s, whole process at "
        f"most {peak:.1f} GiB\nlargest errors: rotation {rotation.max():.2f} degrees, direction "
        f"{np.nanmax(direction):.1f}, focal {100 * focal.max():.2f} %; median rotation "
        f"{np.median(rotation):.2f} degrees"
    )


if __name__ == "__main__":
    main()
