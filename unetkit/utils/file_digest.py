"""Digests of files: a short one that tells contents apart, and that of an exported model.

The digest of an exported model is stored in one of its files, so that damage and edits are detected. This is not a
signature: whoever edits a file can compute the digest again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from unetkit.errors import FileError

#: What stands in place of the digest while it is computed.
_ZEROS = b"0" * 64
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
    ((index, start),) = places
    at = start + marker.index(_ZEROS)
    with paths[index].open("r+b") as file:
        file.seek(at)
        file.write(digest_of(contents, index, at))
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
    return any(digest_of(contents, index, found.start(1)) == found[1] for index, found in places)


def digest_of(contents: Sequence[bytes], index: int, at: int) -> bytes:
    """Return the digest of files in hex, with zeros in place of the digest itself.

    Args:
        contents: the bytes of each file.
        index: the file that contains the digest.
        at: where in this file its 64 hexadecimal digits begin.
    """
    digest = sha256()
    for number, data in enumerate(contents):
        view = memoryview(data)
        if number == index:
            digest.update(view[:at])
            digest.update(_ZEROS)
            digest.update(view[at + len(_ZEROS) :])
        else:
            digest.update(view)
    return digest.hexdigest().encode()


def short_digest(*contents: bytes) -> str:
    """Return twelve characters that tell contents apart."""
    digest = sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:12]
