"""Download and unpack public data sets: Pascal VOC 2007 and 2012, COCO 2017."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from utils.config import option, parse_options
from utils.download import check_disk, download
from utils.errors import RunError, UserError, brief

VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
COCO = "http://images.cocodataset.org"
MAX_RATIO = 20  # maximum compression ratio; the largest here, COCO's JSON, is below 5
MAX_MEMBERS = 1_000_000
ARCHIVES = "archives"  # subfolder of the output folder for the downloaded files


@dataclass(frozen=True)
class Archive:
    """One file to download: URL, digest, size in bytes if known, and the folder to unpack it into."""

    url: str
    md5: str
    size: int | None = None
    folder: str = "."

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


# VOC: addresses and MD5 from torchvision.datasets.voc. COCO publishes no digests; these MD5 are from NVIDIA's
# DeepLearningExamples and PaddleDetection, and the CRC-32 of each file in the zip is also checked.
_VOC07 = Archive(f"{VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64")
_VOC07_TEST = Archive(f"{VOC}/voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f")
_VOC12 = Archive(f"{VOC}/voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd")
_COCO_JSON = Archive(
    f"{COCO}/annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c", 252907541, "coco2017"
)
_COCO_VAL = Archive(f"{COCO}/zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 815585330, "coco2017")
_COCO_TRAIN = Archive(f"{COCO}/zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", 19336861798, "coco2017")
DATASETS: dict[str, tuple[Archive, ...]] = {
    "voc07": (_VOC07, _VOC07_TEST),
    "voc12": (_VOC12,),
    "voc0712": (_VOC07, _VOC07_TEST, _VOC12),
    "coco2017": (_COCO_JSON, _COCO_VAL, _COCO_TRAIN),
}


def download_dataset(
    name: str, output: str | Path = ".", mirror: str | None = None, keep_archives: bool = False, progress: bool = True
) -> Path:
    """Download, verify and unpack a data set; existing files are kept, partial downloads are resumed.

    Args:
        name: a key of `DATASETS`.
        output: VOC goes to `output/VOCdevkit/VOC2007` and so on, COCO to `output/coco2017`.
        mirror: URL of a folder with the archives by file name, used instead of the official ones.
        keep_archives: leave the archives in `output/archives` after unpacking.
        progress: show bars.

    Returns:
        The folder to give as `--data`.

    Raises:
        UserError, RunError: for an unknown name; as `utils.download.download` and `extract`.
    """
    if name not in DATASETS:
        raise UserError("download", f"unknown data set {name!r}", f"choose from {', '.join(DATASETS)}")
    output = Path(output)
    for archive in DATASETS[name]:
        done = output / ARCHIVES / f"{archive.name}.done"
        if done.exists():
            continue
        url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
        path = download(url, output / ARCHIVES / archive.name, md5=archive.md5, size=archive.size, progress=progress)
        extract(path, output / archive.folder, progress)
        done.write_text(f"{archive.md5}  {archive.name}\n", encoding="utf-8")
        if not keep_archives:
            path.unlink()
    return output / ("VOCdevkit" if name.startswith("voc") else DATASETS[name][0].folder)


@dataclass(frozen=True)
class _Member:
    """One entry of an archive, tar or zip."""

    name: str
    size: int
    is_dir: bool
    is_file: bool
    open: Callable[[], Any]


def _members(archive: tarfile.TarFile | zipfile.ZipFile) -> Iterator[_Member]:
    if isinstance(archive, tarfile.TarFile):
        for each in archive:
            yield _Member(each.name, each.size, each.isdir(), each.isreg(), partial(archive.extractfile, each))
    else:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG) and not info.is_dir()
            yield _Member(info.filename, info.file_size, info.is_dir(), plain, partial(archive.open, info))


def extract(path: Path, folder: Path, progress: bool = True, max_bytes: int | None = None) -> int:
    """Unpack a tar or zip file into `folder`; returns the number of files.

    Every entry is checked before the first is written. Files are written atomically; existing ones are replaced.
    `max_bytes` limits the unpacked size; by default `MAX_RATIO` times the archive's.

    Raises:
        RunError: for a damaged archive, one that is too large unpacked, or one with links, devices or paths outside
            `folder`, and if the disk is full.
    """
    from tqdm import tqdm

    with _opened(path) as archive:
        limit = max(path.stat().st_size * MAX_RATIO, 1 << 20) if max_bytes is None else max_bytes
        members = _checked(path, _members(archive), limit)
        folder.mkdir(parents=True, exist_ok=True)
        check_disk(folder, sum(member.size for member, _ in members), f"unpacking {path.name}")
        files = [(member, folder / relative) for member, relative in members if member.is_file]
        for member, relative in members:
            if member.is_dir:
                (folder / relative).mkdir(parents=True, exist_ok=True)
        hide = None if progress else True  # None: tqdm hides itself where there is no terminal
        for member, target in tqdm(files, desc=f"unpacking {path.name}", unit="file", disable=hide):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(target.name + ".part")
            try:
                with member.open() as source, open(part, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                if part.stat().st_size != member.size:
                    raise RunError(path, f"is damaged: {member.name} is incomplete", "delete it and run again")
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
    return len(files)


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    """Open the archive, converting its errors to ours."""
    try:
        with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        raise RunError(path, f"is damaged, or not a tar or zip file ({error})", "delete it and run again") from error


def _checked(path: Path, entries: Iterable[_Member], limit: int) -> list[tuple[_Member, PurePosixPath]]:
    """All members with the safe relative path of each. Raises RunError for anything that must not be unpacked."""
    members: list[tuple[_Member, PurePosixPath]] = []
    total = 0
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    fault = ""
    for member in entries:
        relative = PurePosixPath(member.name)
        total += member.size
        if relative.is_absolute() or ".." in relative.parts or any(c in member.name for c in "\\:\0"):
            fault = f"has an entry outside the folder ({member.name!r})"
        elif not (member.is_file or member.is_dir):
            fault = f"has an entry that is a link or a device ({member.name!r})"
        elif total > limit or len(members) >= MAX_MEMBERS:
            fault = f"would unpack to more than {limit / (1 << 30):.2f} GiB or {MAX_MEMBERS} entries"
        if fault:
            break
        if relative.parts:
            members.append((member, relative))
            folders.update(relative.parents)
            (files if member.is_file else folders).add(relative)
    if not fault and (both := files & folders):
        fault = f"has a file and a folder with the same name ({brief(str(min(both)))})"
    if fault:
        raise RunError(path, fault, "do not trust this archive")
    return members


@dataclass(frozen=True)
class DownloadOptions:
    """Options of `dataset.py download`."""

    name: str = option("", f"one of {', '.join(DATASETS)}", positional=True, metavar="NAME")
    output: str = option(".", "output folder, for VOCdevkit/ or coco2017/", metavar="DIR")
    mirror: str | None = option(None, "URL of a folder with the archives", metavar="URL")
    keep_archives: bool = option(False, "keep the archives in DIR/archives after unpacking")


def main(argv: list[str] | None = None) -> None:
    """`dataset.py download NAME`."""
    options = parse_options(DownloadOptions, argv, prog="dataset.py download", description=__doc__.splitlines()[0])
    folder = download_dataset(options.name, options.output, options.mirror, options.keep_archives)
    print(f"{options.name} is in {folder}")
