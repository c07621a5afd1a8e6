"""The names of timm's models, without importing timm: read from its source once, then kept in the user's cache."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path

from unetkit.utils.files import atomic_write

_REGISTRATION = re.compile(r"^@register_model\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


@cache
def timm_model_names() -> list[str]:
    """Return every name of `timm.list_models()`, in its order: resnet9 before resnet10."""
    path = user_cache_path("unetkit") / f"timm-{version('timm')}.json"
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        cached = None
    if isinstance(cached, list) and cached and all(isinstance(name, str) for name in cached):
        return cached
    names = scan_timm_source()
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(names), encoding="utf-8")
    except OSError:
        pass  # without a writable cache each run reads the source anew, which takes a tenth of a second
    return names


def scan_timm_source() -> list[str]:
    """Read the names from timm's source files; import timm for them if the files do not look as expected."""
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        return []
    files = (Path(spec.origin).parent / "models").glob("*.py")
    names = {name for file in files for name in _REGISTRATION.findall(file.read_text(encoding="utf-8"))}
    if "resnet50" in names:
        return sorted(names, key=_natural_key)
    import timm

    models: list[str] = timm.list_models()
    return models


def _natural_key(name: str) -> list[str | int]:
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name.lower())]
