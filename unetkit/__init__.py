"""Any U-Net from one line: encoders, upsamplers, fusions, blocks and heads as registered parts.

`unetkit.build("resnet101", fuse="add")` builds what `unetkit build --encoder resnet101 --fuse add` shows.
Names are imported on first use, so that `import unetkit` and the command line's help need no torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetkit import bench as bench
    from unetkit import predict as predict
    from unetkit import train as train
    from unetkit.builder import build as build
    from unetkit.builder import make_part as make_part
    from unetkit.ejection.eject import eject as eject
    from unetkit.errors import UnetkitError as UnetkitError
    from unetkit.exporter.export import export as export
    from unetkit.hookspecs import hookimpl as hookimpl
    from unetkit.plan import PartSpec as PartSpec
    from unetkit.plan import Plan as Plan
    from unetkit.plugins import list_parts as list_parts
    from unetkit.plugins import load_parts as load_parts
    from unetkit.predict.evaluate import evaluate as evaluate
    from unetkit.protocols import Output as Output
    from unetkit.registry import Parts as Parts
    from unetkit.rewrites import fast as fast
    from unetkit.serialization import load as load
    from unetkit.serialization import save as save
    from unetkit.smp.convert import from_smp as from_smp
    from unetkit.summary.trace import trace as trace

_HOMES = {
    "build": "unetkit.builder",
    "fast": "unetkit.rewrites",
    "load": "unetkit.serialization",
    "save": "unetkit.serialization",
    "eject": "unetkit.ejection.eject",
    "evaluate": "unetkit.predict.evaluate",
    "export": "unetkit.exporter.export",
    "from_smp": "unetkit.smp.convert",
    "UnetkitError": "unetkit.errors",
    "hookimpl": "unetkit.hookspecs",
    "trace": "unetkit.summary.trace",
    "list_parts": "unetkit.plugins",
    "make_part": "unetkit.builder",
    "PartSpec": "unetkit.plan",
    "Plan": "unetkit.plan",
    "load_parts": "unetkit.plugins",
    "Output": "unetkit.protocols",
    "Parts": "unetkit.registry",
}
_ROOMS = ("bench", "predict", "train")
__all__ = sorted([*_HOMES, *_ROOMS])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("unetkit")
    if name in _ROOMS:
        return import_module(f"unetkit.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unetkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
