"""Turn a training checkpoint into a small safetensors file: weights in bf16, and what they are.

python scripts/export_weights.py output/run/checkpoint-final.pth checkpoints/name.safetensors
"""

import argparse
from pathlib import Path

import torch

from dust3r.training import checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="checkpoint of train.py")
    parser.add_argument("target", type=Path, help=".safetensors file to write")
    parser.add_argument("--fp32", action="store_true", help="keep the weights' full precision")
    args = parser.parse_args()
    content = checkpoint.load_file(args.source)
    dtype = None if args.fp32 else torch.bfloat16
    metadata = {"model": " ".join(content["args"].model.split()), "epoch": content["epoch"]}
    checkpoint.save_safetensors(args.target, content["model"], metadata, dtype)
    print(f"{args.target}: {args.target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
