"""A network that is a whole model: not of our parts, but built, traced, saved and padded as ours are."""

from __future__ import annotations

from torch import Tensor, nn

from unetkit.errors import CannotPass
from unetkit.network import Network


class Whole(Network):
    """A whole model, by itself in `model`; see `unetkit.protocols.Model` for what it may declare.

    Attributes:
        model: as its factory made it.
    """

    def __init__(self, model: nn.Module) -> None:
        """Declare what the model does."""
        super().__init__(
            min_size=getattr(model, "min_size", 1),
            multiple=getattr(model, "multiple", 1),
            size=getattr(model, "size", None),
            valid=False,
        )
        self.model = model

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        """The model: what it declares of itself, it declares here."""
        return self.model

    def _whole(self, x: Tensor, kept: list[Tensor] | None) -> Tensor:
        out = self.model(x)
        if not isinstance(out, Tensor):
            what = f"gives a {type(out).__name__}; promised is one tensor, the logits"
            raise CannotPass(f"--model {self.whole.model} {what}")
        return out
