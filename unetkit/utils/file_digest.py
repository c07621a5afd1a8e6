"""A digest of an exported model's files, stored in one of them, so that damage and edits are detected.

This is not a signature: whoever edits a file can compute the digest again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from unetkit.errors import FileError

#: The key of the digest among the metadata, and its value while the digest is not known.
DIGEST_KEY, PLACEHOLDER = "unetkit.sha256", "sha256:" + "0" * 64
_PATTERN = re.compile(rb"sha256:([0-9a-f]{64})")


def insert_digest(paths: Sequence[Path]) -> bool:
    """Replace the placeholder in the files of a model by the digest of all their other bytes.

    Returns:
        Whether exactly one placeholder was found. A format that compresses its metadata has none.
    """
    marker = PLACEHOLDER.encode()
    contents = [path.read_bytes() for path in paths]
    places = [(index, data.find(marker)) for index, data in enumerate(contents) if marker in data]
    if len(places) != 1 or contents[places[0][0]].count(marker) != 1:
        return False
    ((index, at),) = places
    digest = _compute(contents, index, at)
    with paths[index].open("r+b") as file:
        file.seek(at)
        file.write(digest)
    return True


def is_intact(paths: Sequence[Path]) -> bool | None:
    """Return whether the files of a model have the bytes of when they were written; None if they have no digest.

    Raises:
        FileError: A file cannot be read.
    """
    try:
        contents = [path.read_bytes() for path in paths]
    except OSError as error:
        raise FileError(f"{error.filename} cannot be read: {error.strerror or error}") from error
    places = [(index, found) for index, data in enumerate(contents) for found in _PATTERN.finditer(data)]
    if not places:
        return None
    return any(_compute(contents, index, found.start()) == found[0] for index, found in places)


def _compute(contents: Sequence[bytes], index: int, at: int) -> bytes:
    """Return "sha256:" and the digest of all files, with the placeholder at its place in one of them."""
    marker = PLACEHOLDER.encode()
    digest = sha256()
    for number, data in enumerate(contents):
        view = memoryview(data)
        if number == index:
            digest.update(view[:at])
            digest.update(marker)
            digest.update(view[at + len(marker) :])
        else:
            digest.update(view)
    return b"sha256:" + digest.hexdigest().encode()
