"""Whether a file is a whole, untouched model of ours.

The file holds a digest of all its other bytes, so that damage and edits are found. It is no signature: whoever can
write the file can write its digest.
"""

from __future__ import annotations

import json
import re
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unetkit.errors import BadFile

FORMAT, VERSION = "unetkit", 1
#: What stands where the digest goes while it is computed.
BLANK = b"0" * 64
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def digest(data: bytes, at: int) -> bytes:
    """The digest of a file's bytes, in hex, with zeros where it stands itself."""
    view = memoryview(data)
    digest = sha256(view[:at])
    digest.update(BLANK)
    digest.update(view[at + len(BLANK) :])
    return digest.hexdigest().encode()


def read(path: Path) -> bytes:
    """All of a file. Raises BadFile where it is none, empty, or cannot be read."""
    try:
        if not path.is_file():
            raise BadFile(f"{path} is not there; give a file that unetkit.save wrote")
        data = path.read_bytes()
    except OSError as error:
        raise BadFile(f"{path} cannot be read ({error.strerror or error})") from error
    if not data:
        raise BadFile(f"{path} is empty; save the model again")
    return data


def checked(path: Path, data: bytes) -> dict[str, Any]:
    """The metadata of a whole, untouched model of ours. Raises BadFile for any other file."""
    end = 8 + int.from_bytes(data[:8], "little")
    starts_well = data[8:9] in (b"{", b"")
    if _is_pickle(data):
        raise BadFile(
            f"{path} is a pickle, which can run code when it is opened; build the model, give it what torch.load reads "
            "with weights_only=True, and write it with unetkit.save"
        )
    try:
        header = json.loads(data[8:end]) if end <= len(data) else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        what = "is cut short or damaged; copy or save it again" if starts_well else "is not a safetensors file"
        raise BadFile(f"{path} {what}")
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise BadFile(
            f"{path} is a safetensors file, but none of unetkit's, which hold the plan of a model; "
            "an encoder's weights in timm's format are loaded with --pretrained"
        )
    if metadata.get("version") != str(VERSION):
        raise BadFile(
            f"{path} is of format version {metadata.get('version')}, and unetkit {version('unetkit')} reads {VERSION}; "
            "take a newer unetkit"
        )
    found = _DIGEST.search(data, 8, end)
    if found is None or digest(data, found.start(1)) != found[1]:
        why = "is cut short; copy" if len(data) < end + _size(header) else "was changed after it was saved; take"
        raise BadFile(f"{path} {why} it again from where it is whole")
    return metadata


def _is_pickle(data: bytes) -> bool:
    """Whether it is one of torch.save's zip archives, or a bare pickle of protocol 2 or later."""
    bare = data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    # A header of 640 bytes starts a safetensors file as protocol 2 starts a pickle.
    return (bare and data[8:10] != b'{"') or (data[:4] == b"PK\x03\x04" and b"data.pkl" in data)


def _size(header: dict[str, Any]) -> int:
    """How many bytes of data a header speaks of; 0 where it makes no sense."""
    try:
        return max(int(v["data_offsets"][1]) for name, v in header.items() if name != "__metadata__")
    except (ValueError, TypeError, LookupError):
        return 0
