"""Pairs from shards: few large files, for object storage and slow network disks.

Millions of small files are what such storage is slow at. ``datasets_preprocess.make_shards`` packs
views into tar files of webdataset's format with an index of where each of them lies, see
``shard_format``. Through the index a sample is two reads of a range, whatever its number, so that
shards are a data set like any other: batches are a function of seed, epoch and batch number, on any
number of workers and ranks, a run resumes within an epoch without reading what it had, and no
sample is lost or seen twice. Readers that stream shards from start to end can give none of this:
what a worker gets depends on how many there are, and resuming means reading again.

What streaming gains, few and long reads, comes from the order: ``StereoLoader`` draws shards in
random order and shuffles within a window of ``window`` shards at a time, so that the reads of a
while go to few files, which ``cache_dir`` then fetches whole, once.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
from filelock import FileLock

from dust3r.datasets.bad_samples import naming_sample
from dust3r.datasets.base import BaseStereoViewDataset, RawView
from dust3r.datasets.combine import ResizedDataset
from dust3r.datasets.cropping import Size
from dust3r.datasets.resolution import Resolution
from dust3r.datasets.sampler import Part
from dust3r.datasets.shard_format import ARRAYS, INDEX, ShardIndex, shard_file, unpack_view
from dust3r.datasets.transforms import Transform
from dust3r.utils.files import atomic_path
from dust3r.utils.image import ImgNorm
from dust3r.utils.spec import DATASETS

_SAME = {"val": "test", "test": "val"}


@DATASETS.register()
class Shards(BaseStereoViewDataset):
    """The samples of a data set that ``datasets_preprocess.make_shards`` packed, in its order.

    Views are bit for bit those of the data set, but that ``instance`` tells the shard:
    ``ROOT/<split>/shard-000012/views.tar/000345.jpg``.

    Args:
        ROOT: folder of the shards, or a URL that fsspec reads: 's3://bucket/folder' (needs s3fs),
            'gs://...' (gcsfs), 'https://...'.
        resolution: as ``BaseStereoViewDataset``.
        split: 'train', 'val', 'test' or 'all', of which ROOT has those that were packed; either of
            'val' and 'test' stands for the other where that is not there.
        window: how many shards are shuffled together. Fewer mean longer reads, more mean batches of
            more scenes.
        cache_dir: folder on a local disk to which shards are copied, whole and checked by their
            size, when they are first read; it grows to the size of the data set.
        is_metric_scale: None for what the packed data set says.
        Others as ``BaseStereoViewDataset``.

    Raises:
        FileNotFoundError: there is no index for this split in ROOT.
        ValueError: the index is damaged, or what reads such a URL is not installed.
        SampleError: (on indexing) a shard is missing, shorter than its index says, or damaged.
    """

    def __init__(
        self,
        ROOT: str | Path,
        resolution: Resolution,
        split: str = "train",
        transform: Transform | type[Transform] = ImgNorm,
        aug_crop: int = 0,
        seed: int | None = None,
        window: int = 8,
        cache_dir: str | Path | None = None,
        is_metric_scale: bool | None = None,
        **options: object,
    ) -> None:
        super().__init__(
            split, resolution, transform, aug_crop, seed, is_metric_scale=True, **options
        )
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"window={window!r}: expected a number of shards, 1 or more")
        self.root = str(ROOT).rstrip("/")
        self.window = window
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.folder, self.index = self._open(split)
        metric = self.index.is_metric_scale if is_metric_scale is None else is_metric_scale
        self.is_metric_scale = bool(metric)
        self.views, self.names, self.pairs = self._arrays()

    def __len__(self) -> int:
        return len(self.pairs)

    def __rmatmul__(self, num_samples: int) -> "ResizedShards":
        return ResizedShards(num_samples, self)

    @property
    def parts(self) -> list[Part]:
        """For the sampler: which samples lie together."""
        return [Part(len(self), tuple(np.cumsum(self.index.samples_of).tolist()), self.window)]

    def _get_paths(self, idx: int) -> list[Path]:
        return [self._shard_path(view) / str(self.names[view]) for view in self.pairs[idx]]

    def _get_views(self, idx: int, resolution: Size, rng: np.random.Generator) -> list[RawView]:
        return [self._view(view, idx) for view in self.pairs[idx]]

    def _view(self, view: int, idx: int) -> RawView:
        path = str(self._shard_path(view))
        with naming_sample(path, idx):
            shard, offset, size = (int(number) for number in self.views[view])
            packed = read_range(self._where(shard), offset, size)
            return unpack_view(packed, path, self.oversampling)

    def _shard_path(self, view: int) -> Path:
        return Path(f"{self.folder}/{shard_file(self.views[view, 0])}")

    def _where(self, shard: int) -> str:
        """The file or URL to read a shard from, its copy where there is a cache."""
        url = f"{self.folder}/{shard_file(shard)}"
        if self.cache_dir is None:
            return url
        # Copies of several data sets may share the cache: the checksum tells them apart.
        copy = self.cache_dir / f"{self.index.sha256[shard][:32]}.tar"
        if not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            # All workers want a new shard at once; one of them fetches it.
            with FileLock(f"{copy}.lock"):
                if not copy.is_file():
                    _fetch(url, copy, self.index.sizes[shard])
        return str(copy)

    def _open(self, split: str) -> tuple[str, ShardIndex]:
        """The folder of the split, and its index."""
        for name in (split, _SAME.get(split)):
            folder = f"{self.root}/{name}"
            if name is None:
                continue
            try:
                content = read_whole(f"{folder}/{INDEX}")
            except FileNotFoundError:
                continue
            try:
                return folder, ShardIndex.from_json(content)
            except ValueError as error:
                raise ValueError(f"{folder}/{INDEX} cannot be used: {error}") from error
        raise FileNotFoundError(
            f"{self.root} has no {split}/{INDEX}: give the folder that "
            f"datasets_preprocess.make_shards wrote, and a split that it packed (a run of it that "
            "was stopped goes on when started again)"
        )

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        path = f"{self.folder}/{ARRAYS}"
        try:
            with np.load(io.BytesIO(read_whole(path)), allow_pickle=False) as stored:
                views, names, pairs = (stored[key] for key in ("views", "names", "pairs"))
        except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); copy the shards again") from error
        counted = (self.index.views, self.index.samples, sum(self.index.samples_of))
        if counted != (len(views), len(pairs), len(pairs)) or not len(pairs):
            raise ValueError(
                f"{path} has {len(views)} views and {len(pairs)} samples, but {INDEX} counts "
                f"{counted[0]} and {counted[1]}; copy the shards again"
            )
        return views, names, pairs


class ResizedShards(ResizedDataset):
    """``N @ Shards``: as of any data set, but what is chosen of each shard stands together."""

    dataset: Shards

    @property
    def parts(self) -> list[Part]:
        passes, rest = divmod(self.num_samples, len(self.dataset))
        (whole,) = self.dataset.parts
        parts = [whole] * passes
        if rest:
            # About as many of each shard, whichever the epoch chooses.
            shards = np.array(whole.ends) * rest / len(self.dataset)
            ends = np.unique(np.maximum(1, shards.round().astype(int)))
            parts.append(Part(rest, tuple(ends.tolist()), whole.window))
        return parts

    def _select(self, rng: np.random.Generator) -> np.ndarray:
        chosen = super()._select(rng)
        length = len(self.dataset)
        passes = [chosen[start : start + length] for start in range(0, len(chosen), length)]
        return np.concatenate([np.sort(one) for one in passes])


def read_range(url: str, offset: int, size: int) -> bytes:
    """``size`` bytes of a local file or a URL.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is shorter, or what reads such a URL is not installed.
    """
    if "://" in url:
        content = _filesystem(url).cat_file(url, offset, offset + size)
    else:
        with open(url, "rb") as file:
            file.seek(offset)
            content = file.read(size)
    if len(content) != size:
        raise ValueError(
            f"{url} ends before byte {offset + size}, where its index has a view: copy it again"
        )
    return content


def read_whole(url: str) -> bytes:
    """A local file or a URL; raises as ``read_range``."""
    return _filesystem(url).cat_file(url) if "://" in url else Path(url).read_bytes()


def _fetch(url: str, copy: Path, size: int) -> None:
    with atomic_path(copy) as temporary:
        if "://" in url:
            _filesystem(url).get_file(url, str(temporary))
        else:
            with open(url, "rb") as file, open(temporary, "wb") as written:
                while chunk := file.read(1 << 24):
                    written.write(chunk)
        found = temporary.stat().st_size
        if found != size:
            raise ValueError(f"{url} has {found} bytes, but its index says {size}: copy it again")


def _filesystem(url: str) -> object:
    """What reads URLs like this one."""
    scheme = url.partition("://")[0]
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)[0]
    except ImportError as error:
        raise ValueError(
            f"{url}: reading {scheme}:// needs another package ({error}); install it, or copy the "
            "shards to a local folder"
        ) from error
    except ValueError as error:
        raise ValueError(f"{url}: fsspec reads no {scheme}:// ({error})") from error
