"""Errors that mean that memory was not sufficient."""

from __future__ import annotations

import re

#: Not every "could not create" of oneDNN: it also reports unsupported shapes in this way.
_OOM_PATTERN = re.compile(
    r"\bMemoryError\b|[Cc]an(no|')t allocate memory|not enough memory|[Bb]ad.alloc|out of memory"
    r"|could not create a memory object|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|Failed to allocate memory"
)


def is_oom(error: BaseException) -> bool:
    """Return whether an error means, by its type or message, that memory was not sufficient."""
    return isinstance(error, MemoryError) or bool(_OOM_PATTERN.search(str(error)))
