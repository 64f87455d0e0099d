"""Whether a CroCo network uses the second view: its loss with the right one, and without.

python scripts/eval_completion.py --ckpt output/croco/checkpoint-final.pth --dataset SPEC

The same hidden patches are completed from the pair's own second view, from that view mirrored, and
from the second view of another pair. A network that looks at the first view alone loses nothing by
the change. The mirrored view has the colours of the scene, at wrong places: what is lost by it is
what the network knows of where things are, which a pairwise model starts from.
"""

import argparse
import json
from pathlib import Path

import torch

from croco.masking import RandomMask
from dust3r.datasets import get_data_loader
from dust3r.training.pretrain_completion import (
    MaskedMSE,
    completion_figure,
    load_croco,
    take_views,
)
from dust3r.utils.device import best_device, view_to_device
from dust3r.utils.files import atomic_path
from dust3r.utils.plots import save_png

SECOND_VIEWS = ("its own", "mirrored", "another pair's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--dataset", required=True, help="specification of the held-out pairs")
    parser.add_argument("--batch_size", type=int, default=16, help="pairs at a time, 2 or more")
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--mask_ratio", type=float, default=None, help="if none, the network's")
    parser.add_argument("--norm_pix_loss", type=int, choices=(0, 1), default=1)
    parser.add_argument("--output_dir", type=Path, default=None, help="for JSON and pictures")
    args = parser.parse_args()
    losses = evaluate(args)
    print("| second view | loss |\n|---|---|")
    for name, values in losses.items():
        print(f"| {name} | {sum(values) / len(values):.4f} |")
    if args.output_dir:
        with atomic_path(args.output_dir / "completion.json") as temporary:
            temporary.write_text(json.dumps(losses, indent=1) + "\n")


@torch.no_grad()
def evaluate(args: argparse.Namespace) -> dict[str, list[float]]:
    """The loss of every batch, by where the second view is from; pictures of the first batch."""
    device = best_device()
    net = load_croco(args.ckpt).to(device)
    if args.mask_ratio is not None:
        net.mask_generator = RandomMask(args.mask_ratio)
    take_views(net)
    criterion = MaskedMSE(bool(args.norm_pix_loss))
    loader = get_data_loader(args.dataset, args.batch_size, args.num_workers, shuffle=False)
    losses: dict[str, list[float]] = {name: [] for name in SECOND_VIEWS}
    for number, views in enumerate(loader):
        first, second = (view_to_device(view, device) for view in views)
        others = {
            "its own": second,
            "mirrored": second | {"img": second["img"].flip(-1)},
            "another pair's": second | {"img": second["img"].roll(1, 0)},
        }
        for name, other in others.items():
            prediction = net(first, other)
            losses[name].append(criterion(first, other, *prediction)[0].item())
            if number == 0 and args.output_dir:
                rows = range(min(4, len(first["img"])))
                title = f"second view: {name}"
                figure = completion_figure(
                    net, (first, other), prediction[0], rows, criterion.norm_pix_loss, title
                )
                file = f"completion_{'_'.join(name.replace(chr(39), '').split())}.png"
                save_png(figure, args.output_dir / file)
    return losses


if __name__ == "__main__":
    main()
