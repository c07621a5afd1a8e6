"""How a network is run: eager or compiled, its memory format, its number type. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from unetkit.errors import BadOption, nearest

_RUNS = ("eager", "compiled")
_DTYPES = ("float32", "bfloat16", "float16")
_WORDS = (*_RUNS, "channels_last", *_DTYPES)


@dataclass(frozen=True)
class Mode:
    """`str` writes it shortest: "eager", "compiled+channels_last+bfloat16".

    Attributes:
        compiled: whether torch.compile, with its defaults, is used.
        channels_last: whether weights and input are NHWC in memory.
        dtype: "bfloat16" or "float16" is run under torch.autocast; weights stay in float32.
    """

    compiled: bool = False
    channels_last: bool = False
    dtype: str = "float32"

    @classmethod
    def parse(cls, text: str) -> Mode:
        """Read words joined by plus, in any order. Raises BadOption."""
        words = text.split("+")
        for word in words:
            if word not in _WORDS:
                raise BadOption(f"--mode {text}: no mode is called {word!r}{nearest(word, _WORDS)}; {_HAS}")
        for group in (_RUNS, _DTYPES):
            if len(both := [word for word in words if word in group]) > 1:
                raise BadOption(
                    f"--mode {text}: {' and '.join(both)} contradict each other; modes are listed by commas"
                )
        dtype = next((word for word in words if word in _DTYPES), "float32")
        return cls("compiled" in words, "channels_last" in words, dtype)

    def __str__(self) -> str:
        more = ["channels_last"] * self.channels_last + [self.dtype] * (self.dtype != "float32")
        return "+".join([_RUNS[self.compiled], *more])


_HAS = "there are eager and compiled, and after a + channels_last, bfloat16 and float16 (autocast)"
