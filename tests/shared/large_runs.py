"""What tests of runs of several processes share: small models, torchrun, their logs."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dust3r.training import checkpoint

REPOSITORY = Path(__file__).parents[2]
SEQUENCE = Path(__file__).with_name("train_sequence.py")
WIDTHS = (
    "enc_embed_dim=16, enc_depth=2, enc_num_heads=2, dec_embed_dim=16, dec_depth=4, "
    "dec_num_heads=2, dpt_dim=8"
)
LINEAR = f"AsymmetricCroCo3DStereo(head_type='linear', img_size=(32, 32), {WIDTHS})"


def arguments(tree: Path, out: Path, *extra: str, pairs: int, model: str = LINEAR) -> list[str]:
    """Of ``train.py``: ``pairs`` an epoch, one a batch; ``extra`` overrides."""
    return [
        "--train_dataset", f"{pairs} @ ScanNetpp(split='all', ROOT='{tree}', resolution=32)",
        "--model", model,
        "--batch_size", "1",
        "--epochs", "1",
        "--warmup_epochs", "0",
        "--lr", "1e-3",
        "--num_workers", "0",
        "--keep_freq", "0",
        "--output_dir", str(out),
        *extra,
    ]  # fmt: skip


def start(folder: Path, runs: list[dict], *options: str) -> subprocess.Popen:
    """torchrun with ``options`` on a sequence of runs (``train_sequence.py``)."""
    file = folder / "runs.json"
    file.write_text(json.dumps(runs))
    paths = [str(REPOSITORY), str(SEQUENCE.parent)]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, str(SEQUENCE), str(file)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, seconds: float = 600) -> str:
    """What it wrote to its error stream, once it has ended well."""
    try:
        errors = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.terminate()
        raise AssertionError(process.communicate()[1][-6000:]) from None
    assert process.returncode == 0, errors[-6000:]
    return errors


def weights(path: Path) -> dict:
    return checkpoint.load_file(path)["model"]


def furthest(first: dict, second: dict) -> float:
    """Largest difference of two state dicts of the same names."""
    assert list(first) == list(second)
    return max((first[name] - second[name]).abs().max().item() for name in first)


def samples(out: Path) -> dict[int, list]:
    """Step -> the pairs in its update over all processes, sorted."""
    steps: dict[int, list] = {}
    for path in out.glob("samples-*.jsonl"):
        for entry in map(json.loads, path.read_text().splitlines()):
            assert entry["used"]
            steps.setdefault(entry["step"], []).extend(map(tuple, entry["pairs"]))
    return {step: sorted(steps[step]) for step in sorted(steps)}
