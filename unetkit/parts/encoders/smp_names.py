"""The names of smp's encoders without smp: read from its source."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

#: In encoders/__init__.py, which file's encoders come when; and in each file, its names.
_LISTED = re.compile(r"^from \.(\w+) import \w+_encoders$", re.MULTILINE)
_NAMED = re.compile(r'^    "([^"]+)": \{\n +"encoder":', re.MULTILINE)


@cache
def smp_encoder_names() -> list[str]:
    """Every name of `segmentation_models_pytorch.encoders.get_encoder_names()`, in its order.

    smp itself is asked where its files do not look as expected.
    """
    package = find_spec("segmentation_models_pytorch")
    if package is None or package.origin is None:
        return []
    folder = Path(package.origin).parent / "encoders"
    try:
        files = [folder / f"{file}.py" for file in _LISTED.findall(_text(folder / "__init__.py"))]
        found = [name for file in files for name in _NAMED.findall(_text(file))]
    except OSError:
        found = []
    return found if "resnet18" in found else _asked()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _asked() -> list[str]:
    from segmentation_models_pytorch import encoders

    return list(encoders.get_encoder_names())
