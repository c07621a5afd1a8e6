"""Read all images of a folder while the first epoch runs, to report a damaged one before an epoch is spent."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Event, Thread

from unetkit.data.folder import FolderDataset
from unetkit.data.types import Dataset
from unetkit.errors import UnetkitError


class ImageCheck(Thread):
    """A thread that reads the validation images and then the training images of a folder once.

    Other data sets are left alone: what the code of a plugin does in two threads at once is unknown.
    """

    def __init__(self, splits: Mapping[str, Dataset]) -> None:
        super().__init__(name="image check", daemon=True)
        found = [splits[name] for name in ("val", "train") if name in splits]
        self._splits = [images for images in found if isinstance(images, FolderDataset)]
        self._stopped = Event()
        self._error: UnetkitError | None = None

    def run(self) -> None:
        try:
            for images in self._splits:
                for index in range(len(images)):
                    if self._stopped.is_set():
                        return
                    images[index]
        except UnetkitError as error:
            self._error = error

    def raise_error(self) -> None:
        """Raise FileError if an image was found that cannot be read."""
        if self._error:
            raise self._error

    def stop(self) -> None:
        """End the thread after the image that it reads."""
        self._stopped.set()
