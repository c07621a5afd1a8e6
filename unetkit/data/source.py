"""The value of `--data`: the path of a folder, or the name of a data set. The module imports no torch."""

from __future__ import annotations

from pathlib import Path

from unetkit.errors import FileError, UnknownNameError, did_you_mean
from unetkit.options import format_value, parse_value
from unetkit.plan import PartSpec
from unetkit.plugins import default_parts
from unetkit.registry import Parts


def with_absolute_path(text: str, parts: Parts | None = None) -> str:
    """Return the text with an absolute path, which is valid in any working directory."""
    if not is_named_dataset(text, parts):
        return str(Path(text).resolve())
    spec = PartSpec.parse(text)
    roots = [parse_value(str(value), str) for name, value in spec.options if name == "root"]
    return str(spec.with_options({"root": format_value(Path(roots[0]).resolve())})) if roots else text


def is_named_dataset(text: str, parts: Parts | None = None) -> bool:
    """Return whether a text is the name of a data set and not a folder.

    Raises:
        UnknownNameError, FileError: It is neither.
    """
    name, colon, _ = text.partition(":")
    registry = (parts or default_parts()).datasets
    names = registry.names()
    is_known = name in names or any(entry.name == name for entry in registry.entries.values())
    if is_known or Path(text).is_dir():
        return is_known
    if colon:
        known = ", ".join(names)
        raise UnknownNameError(
            f"{text}: no dataset is called {name!r}{did_you_mean(name, names) or f'; the datasets are {known}'}"
        )
    what = "is not a folder" if Path(text).exists() else "the folder does not exist"
    near = did_you_mean(name, names) or f"; give one, or the name of a data set: {', '.join(names)}"
    raise FileError(f"{text}: {what}{near}")
