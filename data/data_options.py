"""The options that name a data set, for the commands of dataset.py."""

from __future__ import annotations

from dataclasses import dataclass

from data.class_names import read_class_names
from data.index import DatasetIndex
from data.open import open_dataset, training_split
from utils.config import option


@dataclass(frozen=True)
class SourceOptions:
    """The data set of a command, which adds its own options as a subclass."""

    data: str = option("", "data set: a folder or file in any layout of docs/DATA.md", positional=True, metavar="DATA")
    image_folder: str | None = option(
        None, "folder of the images, if it is not that of the annotations (COCO, CSV, XML, JSON)", metavar="DIR"
    )


@dataclass(frozen=True)
class DataOptions(SourceOptions):
    """Data set, split and classes of a command."""

    split: str | None = option(None, "split to use (default: the training split)")
    classes: str | None = option(
        None, "file of class names, one per line, or voc, coco (default: the names in the annotations)", metavar="FILE"
    )

    def class_names(self) -> tuple[str, ...] | None:
        """The names in the file of `classes`; None without one."""
        return read_class_names(self.classes) if self.classes else None

    def open(self, split: str | None = None) -> DatasetIndex:
        """Read `split`, else the chosen split, else the one to train on. Raises UserError, as `open_dataset`."""
        split = split or self.split or training_split(self.data, self.image_folder)
        return open_dataset(self.data, split, self.class_names(), image_folder=self.image_folder)
