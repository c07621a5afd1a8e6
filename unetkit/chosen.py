"""What is chosen by a name with options, `elastic:std=8`, and is no part of a network: data sets, losses and so on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unetkit.errors import BadOption, UnknownName, nearest
from unetkit.plan import PartSpec
from unetkit.resolve import typed_options
from unetkit.signature import Signature, load_target, read_signature
from unetkit.values import format_value


class Menu:
    """The names that a word of a command takes, each a factory with keyword-only options."""

    def __init__(self, word: str, what: str, see: str, factories: Mapping[str, Callable[..., Any] | str]) -> None:
        """Offer names.

        Args:
            word: of the command line, without its dashes: "loss".
            what: one of them is: "loss".
            see: where all are described: "docs/losses.md".
            factories: by name, each a callable or "module:attr"; its positional parameters are given by whoever makes
                one, its keyword-only ones are options.
        """
        self.word, self.what, self.see, self.factories = word, what, see, factories

    def make(self, text: str | PartSpec, *wiring: Any) -> Any:
        """What a name with options means. Raises UnknownName, or BadOption."""
        spec, known = PartSpec.of(text), self.signature(text)
        options = typed_options(self.word, spec, known, self.see)
        factory = self.factories[spec.name]
        return (load_target(factory) if isinstance(factory, str) else factory)(*wiring, **options)

    def said(self, text: str | PartSpec) -> str:
        """The shortest text that means the same."""
        spec, known = PartSpec.of(text), self.signature(text)
        given = typed_options(self.word, spec, known, self.see)
        defaults = {option.name: option.default for option in known.options}
        types = {option.name: option.type for option in known.options}
        kept = {name: format_value(value, types[name]) for name, value in given.items() if value != defaults[name]}
        return str(PartSpec(spec.name).with_options(kept))

    def signature(self, text: str | PartSpec) -> Signature:
        """What the factory behind a name takes. Raises UnknownName, or BadOption."""
        spec = PartSpec.of(text)
        if spec.then:
            raise BadOption(f"--{self.word} {spec}: one {self.what} is taken here; nothing follows it with +")
        if spec.name not in self.factories:
            near = nearest(spec.name, self.factories) or f"; there are {', '.join(self.factories)}"
            raise UnknownName(f"--{self.word} {spec}: no {self.what} is called {spec.name!r}{near}")
        return read_signature(self.factories[spec.name])
