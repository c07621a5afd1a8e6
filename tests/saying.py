"""Whether a message has the words that matter, of tables of messages."""

from __future__ import annotations

import re


def says(message: str, words: str) -> bool:
    """Return whether a message begins with the words and has those after each … later on, in this order."""
    return re.match(".*".join(map(re.escape, words.split("…"))), message, re.DOTALL) is not None
