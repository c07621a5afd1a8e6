"""Every check in order: its name, what it checks, for which kinds, and which checks it depends on.

This imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unetkit.registry import KINDS, PART_KINDS

#: The kinds whose parts are modules. A recipe returns a plan, and a run is made of other objects.
MODULE_KINDS = tuple(kind.title for kind in PART_KINDS if kind.title != "recipe")
ALL_KINDS = tuple(kind.title for kind in KINDS)
PLUGIN = ("plugin",)


@dataclass(frozen=True)
class Check:
    """One check of a part.

    Attributes:
        name: the short name in results and test ids.
        title: what the part must do.
        function: the function of the check, "module:function" within `unetkit.testing.checks`.
        kinds: titles of the kinds that are checked; "plugin" for a check of the plugin itself.
        needs: checks that must pass first, because this check would only repeat their failure.
    """

    name: str
    title: str
    function: str
    kinds: tuple[str, ...] = MODULE_KINDS
    needs: tuple[str, ...] = ("construction",)


#: Checks that the checks of outputs in eval mode depend on.
_DETERMINISTIC = ("construction", "registration", "state")
_CONFORMING = ("registration", "forward", "channels", "size", "gradients", "inputs", "state", "state_dict")
#: Building a network reads the options of the part, copies the part, and runs it on the meta device.
_BUILDABLE = ("option types", *_CONFORMING, "deepcopy", "meta")

CHECKS = (
    Check(
        "signature",
        "positional parameters as documented, options keyword-only",
        "signature:check_positional",
        ALL_KINDS,
        (),
    ),
    Check("option types", "every option and its default can be parsed", "signature:check_option_types", ALL_KINDS, ()),
    Check(
        "documentation",
        "a summary, and a line of help for every option",
        "signature:check_documentation",
        ALL_KINDS,
        (),
    ),
    Check(
        "construction",
        "a module with the attributes of its kind is created",
        "forward:check_construction",
        needs=("signature",),
    ),
    Check(
        "unknown option",
        "an unknown option is rejected",
        "signature:check_unknown_option",
        ALL_KINDS,
        ("signature", "construction"),
    ),
    Check("registration", "every tensor and layer is registered", "state:check_registration"),
    Check("forward", "odd sizes, 1x1 and any batch size pass in train and eval mode", "forward:check_forward"),
    Check("channels", "outputs have the declared or requested channels", "forward:check_channels"),
    Check(
        "size",
        "outputs have the height and width expected of the kind",
        "forward:check_size",
        needs=("construction", "channels"),
    ),
    Check("logits", "outputs are logits, not probabilities", "forward:check_logits", ("head", "model")),
    Check("inputs", "inputs are not changed in place", "autograd:check_inputs"),
    Check("state", "eval mode is deterministic and keeps no state between calls", "autograd:check_state"),
    Check(
        "gradients",
        "finite gradients reach every parameter and the inputs",
        "autograd:check_gradients",
        needs=_DETERMINISTIC,
    ),
    Check(
        "batch",
        "samples of a batch are independent in eval mode",
        "autograd:check_batch",
        needs=(*_DETERMINISTIC, "channels"),
    ),
    Check(
        "seed",
        "the seed determines weights and training passes",
        "state:check_seed",
        needs=(*_DETERMINISTIC, "gradients"),
    ),
    Check(
        "state_dict",
        "the state_dict restores the outputs exactly",
        "state:check_state_dict",
        needs=_DETERMINISTIC,
    ),
    Check(
        "deepcopy",
        "a deep copy is equal and shares no memory",
        "state:check_deepcopy",
        needs=(*_DETERMINISTIC, "state_dict"),
    ),
    Check("dtype", "float64 inputs give float64 outputs", "export:check_dtype", needs=(*_DETERMINISTIC, "state_dict")),
    Check(
        "meta",
        "construction and forward work on the meta device",
        "export:check_meta",
        needs=_DETERMINISTIC,
    ),
    Check(
        "export",
        "one torch.export program is valid for all sizes",
        "export:check_export",
        needs=("forward", "state", "meta"),
    ),
    Check(
        "channels_last", "channels_last memory gives equal outputs", "export:check_channels_last", needs=_DETERMINISTIC
    ),
    Check("options", "every choice of an option conforms as well", "forward:check_options", needs=_CONFORMING),
    Check("network", "a network with it can be trained, saved and loaded", "network:check_network", needs=_BUILDABLE),
    Check(
        "outputs",
        "each named output beside the prediction is trained by its target and loss",
        "training:check_outputs",
        ("head", "model"),
        ("network",),
    ),
    Check(
        "plan", "a plan without a recipe, whose line can be parsed", "network:check_plan", ("recipe",), ("signature",)
    ),
    Check(
        "input size", "its network accepts the recipe's input size", "network:check_input_size", ("recipe",), ("plan",)
    ),
    Check(
        "loss values",
        "values for each image are finite, without ignored pixels, and lower for right predictions",
        "training:check_loss",
        ("loss",),
        ("signature",),
    ),
    Check(
        "maps",
        "maps are as declared, without ignored pixels, and depend on the mask only",
        "training:check_target",
        ("target",),
        ("signature",),
    ),
    Check(
        "transform",
        "image and mask keep their types and move alike, and the generator determines the result",
        "training:check_augmentation",
        ("augmentation",),
        ("signature",),
    ),
    Check(
        "steps",
        "steps change the parameters, and a saved state continues exactly",
        "training:check_optimizer",
        ("optimizer",),
        ("signature",),
    ),
    Check(
        "samples",
        "its splits have samples with valid masks, which are the same each time",
        "training:check_dataset",
        ("dataset",),
        ("signature",),
    ),
    Check(
        "measurement", "it measures a small network", "plugin:check_metric", ("metric",), ("signature", "documentation")
    ),
    Check(
        "files",
        "files that it writes are opened by its engine, compute the same, and keep the metadata",
        "exporting:check_format",
        ("format",),
        ("signature",),
    ),
    Check("loading", "the plugin loads, registers and adds something", "plugin:check_loading", PLUGIN, ()),
    Check("imports", "loading and registering do not import torch", "plugin:check_imports", PLUGIN, ("loading",)),
    Check(
        "new process",
        "another process unpickles its parts, and its constants survive a build on the meta device",
        "new_process:check_new_process",
        PLUGIN,
        ("loading",),
    ),
    Check("libraries", "its libraries list their names", "plugin:check_libraries", PLUGIN, ("loading",)),
    Check("commands", "its commands have help and unused names", "plugin:check_commands", PLUGIN, ("loading",)),
    Check(
        "wrapping",
        "wrapped models predict, train, and can be saved and copied",
        "plugin:check_wrapping",
        PLUGIN,
        ("loading",),
    ),
)


#: The start of the message of a check that was skipped because another one did not pass.
DEPENDS_ON = "it depends on "


@dataclass(frozen=True)
class CheckResult:
    """The result of one check of a part, or of the plugin itself.

    Attributes:
        part: the kind and name, as in "fusion gate"; "plugin" for a check of the plugin itself.
        check: the name of the check; see `CHECKS`.
        outcome: "passed", "failed", or "skipped" if there is nothing to check or a required check did not pass.
        message: one line that says what is wrong, or why the check was skipped.
        place: for a failure, the file and line of the part where an exception came from, or else where the part is
            defined, as in "gate.py:12"; "" if there is no file.
        traceback: the frames of an exception that are in the part's own code, and the exception; "" if there is none.
    """

    part: str
    check: str
    outcome: Literal["passed", "failed", "skipped"]
    message: str = ""
    place: str = ""
    traceback: str = ""

    @property
    def is_blocked(self) -> bool:
        """True if the check was skipped because a check that it depends on did not pass."""
        return self.outcome == "skipped" and self.message.startswith(DEPENDS_ON)

    def __str__(self) -> str:
        return f"{self.part}: {self.check} {self.outcome}" + (f": {self.full_message}" if self.message else "")

    @property
    def full_message(self) -> str:
        """The message, followed by the place in the part's code."""
        return f"{self.message} ({self.place})" if self.place else self.message


class Nonconformity(AssertionError):
    """A violation of the contract, in one line: for which arguments, what was expected, and what was returned."""


class SkipCheck(Exception):
    """A check does not apply; the message says why."""


def one_line(error: BaseException) -> str:
    """Return the type and the first line of an exception."""
    text = str(error).strip().split("\n")[0][:300] or "no message"
    return f"{type(error).__name__}: {text}"
