"""Every check in order: its name, what it checks, for which kinds, and which checks it depends on.

This imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unetkit.registry import KINDS

#: The kinds that are made and called; a recipe is only read.
MODULES = tuple(kind.title for kind in KINDS if kind.title != "recipe")
EVERY = (*MODULES, "recipe")
PLUGIN = ("plugin",)


@dataclass(frozen=True)
class Check:
    """One check of a part.

    Attributes:
        name: the short name in results and test ids.
        title: what the part must do.
        home: the function of the check, "module:function" within `unetkit.testing.checks`.
        kinds: titles of the kinds that are checked; "plugin" for a check of the plugin itself.
        needs: checks that must pass first, because this check would only repeat their failure.
    """

    name: str
    title: str
    home: str
    kinds: tuple[str, ...] = MODULES
    needs: tuple[str, ...] = ("made",)


_STEADY = ("made", "state")
_WHOLE = ("forward", "channels", "size", "gradients", "inputs", "state", "state_dict")
#: A network is looked at on the meta device, as a copy, when it is built.
_BUILT = (*_WHOLE, "deepcopy", "meta")

CHECKS = (
    Check("signature", "the wiring is positional, options keyword-only", "signature:wiring", EVERY, ()),
    Check("option types", "the grammar reads every option and its default", "signature:types_", EVERY, ()),
    Check("documented", "a summary, and a line of help for every option", "signature:documented", EVERY, ()),
    Check("made", "the builder's wiring makes a module that declares itself", "forward:made", needs=("signature",)),
    Check(
        "unknown option", "an option that there is not is refused", "signature:unknown", EVERY, ("signature", "made")
    ),
    Check("forward", "odd sizes, 1x1, one sample and several pass in train and eval", "forward:forward"),
    Check("channels", "the channels are those declared or asked for", "forward:channels"),
    Check("size", "height and width are what the kind promises", "forward:size", needs=("made", "channels")),
    Check("logits", "logits come out, not probabilities", "forward:logits", ("head", "model")),
    Check("inputs", "inputs are left as they were", "autograd:inputs"),
    Check("state", "in eval a pass leaves nothing behind and draws nothing", "autograd:state"),
    Check("gradients", "finite gradients reach every parameter, and pass through", "autograd:gradients", needs=_STEADY),
    Check("batch", "in eval the samples of a batch do not mix", "autograd:batch", needs=(*_STEADY, "channels")),
    Check("seed", "a seed fixes weights and passes", "state:seed", needs=(*_STEADY, "gradients")),
    Check("state_dict", "the state_dict carries all that matters", "state:state_dict", needs=_STEADY),
    Check("deepcopy", "a deep copy is equal and shares nothing", "state:deep_copy", needs=(*_STEADY, "state_dict")),
    Check("dtype", "in float64 it computes in float64", "export:dtype", needs=(*_STEADY, "state_dict")),
    Check("meta", "it is made and passed on the meta device, without values", "export:meta", needs=_STEADY),
    Check(
        "export", "torch.export gives one program for every size", "export:export", needs=("forward", "state", "meta")
    ),
    Check("channels_last", "channels_last memory gives equal outputs", "export:channels_last", needs=_STEADY),
    Check("options", "every choice of an option keeps the promises too", "forward:options", needs=_WHOLE),
    Check("network", "a network with it trains, keeps its size, is saved and loaded", "network:network", needs=_BUILT),
    Check("plan", "a plan that names no other recipe and reads back", "network:plan", ("recipe",), ("signature",)),
    Check("own size", "its network passes its own size on meta", "network:own_size", ("recipe",), ("plan",)),
    Check("loads", "the plugin loads, registers and adds something", "plugin:loads", PLUGIN, ()),
    Check("light", "importing and registering it imports no torch", "plugin:light", PLUGIN, ("loads",)),
    Check("sources", "the libraries that it adds list their names", "plugin:sources", PLUGIN, ("loads",)),
    Check("commands", "its commands have help and names of their own", "plugin:commands", PLUGIN, ("loads",)),
    Check("metrics", "its metrics are described, and measure a small network", "plugin:metrics", PLUGIN, ("loads",)),
    Check("wraps", "models that it wraps predict, train, are saved and copied", "plugin:wraps", PLUGIN, ("loads",)),
)


#: How the message of a check begins that was not made, since one that it builds on did not pass.
BUILDS_ON = "it builds on "


@dataclass(frozen=True)
class CheckResult:
    """The result of one check of a part, or of the plugin itself.

    Attributes:
        part: the kind and name, as in "fusion gate"; "plugin" for a check of the plugin itself.
        check: the name of the check; see `CHECKS`.
        outcome: "passed", "failed", or "skipped" if there is nothing to check or a required check did not pass.
        message: one line that says what is wrong, or why the check was skipped.
    """

    part: str
    check: str
    outcome: Literal["passed", "failed", "skipped"]
    message: str = ""

    @property
    def follows(self) -> bool:
        """True if the check was skipped because a check that it depends on did not pass."""
        return self.outcome == "skipped" and self.message.startswith(BUILDS_ON)

    def __str__(self) -> str:
        return f"{self.part}: {self.check} {self.outcome}" + (f": {self.message}" if self.message else "")


class Nonconformity(AssertionError):
    """A violation of the contract, in one line: for which arguments, what was expected, and what was returned."""


class SkipCheck(Exception):
    """A check does not apply; the message says why."""


def one_line(error: BaseException) -> str:
    """Return the type and the first line of an exception."""
    text = str(error).strip().split("\n")[0][:300] or "no message"
    return f"{type(error).__name__}: {text}"
