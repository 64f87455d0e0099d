"""Packs a data set into shards, for object storage and slow network disks.

    python -m datasets_preprocess.make_shards ROOT --output_dir SHARDS --num_workers 8
    python -m datasets_preprocess.make_shards "Co3d(split='train', ROOT='...', mask_bg=True,
        resolution=224)" --output_dir SHARDS
    python -m datasets_preprocess.make_shards --check SHARDS

Writes ``SHARDS/<split>`` as ``dust3r.datasets.shard_format`` describes, which
``Shards(ROOT='SHARDS', split=..., resolution=...)`` reads. The data set is a specification, whose
``split`` is packed, or the ROOT of one in the processed layout, of which ``--splits`` are. Images
are stored as their files are, depth without loss. A view that several pairs of a shard share is
stored once in it; views of pairs in different shards are stored in each of these: the report says
how often in the mean.

A shard holds ``--shard_size`` consecutive samples. It is written whole or not at all, and the same
command goes on where it was stopped.
"""

import argparse
import functools
import hashlib
import json
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

import dust3r.datasets  # noqa: F401  (registers what specifications may name)
from datasets_preprocess.scenes import SceneReport, preprocess_scenes, run_command
from dust3r.datasets.bad_samples import SampleError, naming_sample
from dust3r.datasets.base import BaseStereoViewDataset, RawView
from dust3r.datasets.processed import METADATA
from dust3r.datasets.shard_format import (
    ARRAYS,
    END,
    INDEX,
    TAR,
    ShardIndex,
    digest,
    pack_view,
    shard_file,
    shard_folder,
)
from dust3r.utils.files import atomic_path
from dust3r.utils.spec import DATASETS, build

SHARD_SIZE = 500
SPLITS = ("train", "test")

_PART = "index.npz"
_MADE_FROM = "made_from.json"
_BAD = "sample that cannot be read"


def make_shards(
    specification: str, output_dir: str | Path, shard_size: int = SHARD_SIZE, num_workers: int = 1
) -> str:
    """Pack the data set that ``specification`` describes into ``output_dir/<split>``; a report.

    Args:
        shard_size: samples in a shard.
        num_workers: processes, which make a shard each at a time.

    Raises:
        ValueError: it is no single data set; its views depend on chance; the folder has shards of
            another one; a shard could not be made, or nothing could be read.
        OSError: the disk is full; whole shards are kept.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size}: expected a number of samples, 1 or more")
    _opened.cache_clear()
    dataset = _opened(specification)
    with suppress(SampleError):
        _raw_views(dataset, 0)
    folder = Path(output_dir) / dataset.split
    _check_source(folder, specification, len(dataset), shard_size)
    numbers = range(-(-len(dataset) // shard_size))
    pack = functools.partial(pack_shard, specification=specification, shard_size=shard_size)
    made = preprocess_scenes(
        numbers,
        pack,
        folder,
        name=shard_folder,
        num_workers=num_workers,
        description=f"{dataset.split} shards",
    )
    if made.failed:
        raise ValueError(
            f"{len(made.failed)} shards failed, first: {next(iter(made.failed.items()))}"
        )
    return _index(folder, specification, dataset, len(numbers))


def pack_shard(number: int, folder: Path, *, specification: str, shard_size: int) -> SceneReport:
    """Write the tar file and the index of shard ``number`` into ``folder``."""
    dataset = _opened(specification)
    first = number * shard_size
    report = SceneReport()
    known: dict[bytes, int] = {}
    places, names, pairs, skipped = [], [], [], []
    checksum = hashlib.sha256()
    with (folder / TAR).open("wb") as file:

        def write(content: bytes) -> None:
            file.write(content)
            checksum.update(content)

        for index in range(first, min(first + shard_size, len(dataset))):
            try:
                raws = _raw_views(dataset, index)
                digests = [digest(raw) for raw in raws]
                for raw, key in zip(raws, digests, strict=True):
                    if key not in known:
                        with naming_sample(raw.instance, index):
                            np.asarray(raw.image)  # whether it can be decoded
            except SampleError as error:
                report.skip(_BAD, str(error))
                skipped.append(str(error))
                continue
            for raw, key in zip(raws, digests, strict=True):
                if key in known:
                    continue
                known[key] = len(places)
                name, packed = pack_view(raw, f"{len(places):06d}")
                places.append((file.tell(), len(packed)))
                names.append(name)
                write(packed)
            pairs.append([known[key] for key in digests])
        write(END)
    with atomic_path(folder / _PART) as temporary:
        np.savez_compressed(
            temporary,
            places=np.array(places, np.int64).reshape(-1, 2),
            names=np.array(names, np.str_),
            pairs=np.array(pairs, np.int64).reshape(-1, 2),
            skipped=np.array(skipped, np.str_),
            digests=np.frombuffer(b"".join(known), "V16"),
            sha256=np.array(checksum.hexdigest()),
        )
    report.frames, report.pairs = len(places), len(pairs)
    return report


def damaged(output_dir: str | Path) -> list[str]:
    """What is wrong with the shards of all splits below a folder; empty where nothing is.

    Raises FileNotFoundError where no split has an index.
    """
    indices = sorted(Path(output_dir).glob(f"*/{INDEX}"))
    if not indices:
        raise FileNotFoundError(f"{output_dir} has no <split>/{INDEX}: give a folder of shards")
    found = []
    for path in indices:
        index = ShardIndex.from_json(path.read_text())
        for number, (size, sha256) in enumerate(zip(index.sizes, index.sha256, strict=True)):
            shard = path.parent / shard_file(number)
            if not shard.is_file():
                found.append(f"{shard} is missing")
            elif shard.stat().st_size != size:
                found.append(f"{shard} has {shard.stat().st_size} bytes, not {size}")
            elif _sha256(shard) != sha256:
                found.append(f"{shard} has another checksum than when it was written")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line; see ``--help``. 0 where all went well."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "source", nargs="?", help="specification of a data set, or ROOT of a processed one"
    )
    parser.add_argument("--output_dir", type=Path, help="folder to write <split>/... to")
    parser.add_argument("--splits", nargs="+", default=SPLITS, help="to pack of a ROOT")
    parser.add_argument("--shard_size", type=int, default=SHARD_SIZE, help="samples in a shard")
    parser.add_argument("--num_workers", type=int, default=1, help="processes")
    parser.add_argument("--check", type=Path, help="compare shards here with their checksums")
    return run_command(_run, parser, arguments)


def _run(options: argparse.Namespace) -> str:
    if options.check is not None:
        if found := damaged(options.check):
            raise ValueError("; ".join(found))
        return f"{options.check}: all shards are as they were written"
    if options.source is None or options.output_dir is None:
        raise ValueError("give a data set and --output_dir, or --check with a folder of shards")
    specifications = [options.source]
    if (Path(options.source) / METADATA).is_file():
        root = str(Path(options.source).resolve())
        specifications = [
            f"ScanNetpp(split={split!r}, ROOT={root!r}, resolution=224)" for split in options.splits
        ]
    elif "(" not in options.source:
        raise ValueError(
            f"{options.source} has no {METADATA}: give the ROOT of a data set in the processed "
            "layout, or a specification such as \"Co3d(split='train', ROOT='...', resolution=224)\""
        )
    return "\n".join(
        make_shards(text, options.output_dir, options.shard_size, options.num_workers)
        for text in specifications
    )


@functools.lru_cache(maxsize=1)
def _opened(specification: str) -> BaseStereoViewDataset:
    dataset = build(specification, DATASETS)
    if not isinstance(dataset, BaseStereoViewDataset):
        raise ValueError(
            f"{specification!r} describes {dataset!r}: pack each data set by itself, whole, and "
            "write 'N @' and '+' with their Shards in the training command"
        )
    return dataset


def _raw_views(dataset: BaseStereoViewDataset, index: int) -> list[RawView]:
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    raws = list(dataset._get_views(index, dataset.resolutions[0], rng))
    if rng.bit_generator.state != before:
        raise ValueError(
            f"views of {dataset!r} depend on chance (as with mask_bg='rand'), which shards cannot "
            "hold: fix it (mask_bg=True or False), and pack both if need be"
        )
    return raws


def _check_source(folder: Path, specification: str, samples: int, shard_size: int) -> None:
    """Refuse to add shards of one data set to those of another."""
    now = {"specification": specification, "samples": samples, "shard_size": shard_size}
    path = folder / _MADE_FROM
    if not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(now, indent=1))
    elif (before := json.loads(path.read_text())) != now:
        raise ValueError(
            f"{folder} was begun with {before}, not with {now}: remove it, or choose another "
            "--output_dir"
        )


def _index(
    folder: Path, specification: str, dataset: BaseStereoViewDataset, num_shards: int
) -> str:
    """Write the index of all shards, ``index.json`` last; a report."""
    parts = []
    for number in range(num_shards):
        with np.load(folder / shard_folder(number) / _PART) as stored:
            parts.append(dict(stored))
    counts = [len(part["names"]) for part in parts]
    starts = np.cumsum([0, *counts])
    shards = np.repeat(np.arange(num_shards), counts)
    views = np.column_stack([shards, np.concatenate([part["places"] for part in parts])])
    pairs = [part["pairs"] + start for part, start in zip(parts, starts, strict=False)]
    pairs = np.concatenate(pairs)
    if not len(pairs):
        raise ValueError(f"no sample of {specification} could be read, see {folder}")
    names = np.concatenate([part["names"] for part in parts])
    skipped = np.concatenate([part["skipped"] for part in parts]).tolist()
    sizes = [(folder / shard_file(number)).stat().st_size for number in range(num_shards)]
    index = ShardIndex(
        source=specification,
        split=dataset.split,
        samples=len(pairs),
        views=len(views),
        is_metric_scale=dataset.is_metric_scale,
        sizes=sizes,
        sha256=[str(part["sha256"]) for part in parts],
        samples_of=[len(part["pairs"]) for part in parts],
        skipped=skipped,
    )
    with atomic_path(folder / ARRAYS) as temporary:
        np.savez_compressed(temporary, views=views, names=names, pairs=pairs)
    with atomic_path(folder / INDEX) as temporary:
        temporary.write_text(index.to_json())
    distinct = len(np.unique(np.concatenate([part["digests"] for part in parts]).view("S16")))
    lines = [
        f"{folder}: {len(pairs)} samples in {num_shards} shards of {sum(sizes) / 1e6:.1f} MB in "
        f"all; {distinct} views, each stored {len(views) / distinct:.2f} times in the mean"
    ]
    if skipped:
        lines.append(f"left out {len(skipped)} samples, first: {skipped[0]}")
    return "\n".join(lines)


def _sha256(path: Path) -> str:
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            checksum.update(chunk)
    return checksum.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
