"""Names: who has them, what they stand for, and what a lookup that misses says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unetkit.errors import OptionError, PluginError, UnknownNameError
from unetkit.registry import KINDS, Parts, Plugin


def gate(x_channels: int, skip_channels: int, *, width: int = 1) -> str:
    return f"gate {x_channels} {skip_channels} {width}"


def from_library(in_channels: int, name: str, *, levels: int = 5) -> str:
    return f"{name} {in_channels} {levels}"


def library_names() -> list[str]:
    return ["resnet18", "resnet34", "vgg16"]


def more_names() -> list[str]:
    return ["resnet34", "own"]


@pytest.fixture
def parts() -> Parts:
    """A registry of its own: two encoders of one library, one of another, two fusions."""
    made = Parts()
    made.encoders.add("plain", gate)
    made.encoders.add_library("lib", f"{__name__}:library_names", f"{__name__}:from_library")
    made.encoders.add_library("more", f"{__name__}:more_names", from_library)
    made.fusions.add("gate", f"{__name__}:gate")
    made.fusions.add("concat", gate)
    return made


def message(caught: type[Exception], call: Callable[[], object]) -> str:
    with pytest.raises(caught) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_name_gives_its_factory(parts: Parts) -> None:
    entry = parts.fusions.get("gate")
    assert (entry.name, entry.owner, entry.kind.field) == ("gate", "unetkit", "fuse")
    assert entry.load() is gate
    assert parts.fusions.get("concat").load() is gate
    assert [option.name for option in entry.signature.options] == ["width"]


def test_a_kind_by_its_word_title_or_plural(parts: Parts) -> None:
    for kind in KINDS:
        assert parts[kind.field] is parts[kind.title] is parts[kind.attribute] is getattr(parts, kind.attribute)
    assert [registry.kind for registry in parts] == list(KINDS)


def test_an_unknown_kind_names_those_there_are(parts: Parts) -> None:
    unknown = message(OptionError, lambda: parts["fusoin"])
    assert "'fusoin' (did you mean fusions" in unknown
    assert unknown.endswith(", ".join(kind.attribute for kind in KINDS))


def test_a_taken_name_names_both_owners(parts: Parts) -> None:
    staged = parts.stage("mine")
    taken = message(PluginError, lambda: staged.fusions.add("gate", gate))
    for fact in ("fusion 'gate' of mine", "registered by unetkit", "UNETKIT_DISABLE=mine", "replaces='unetkit'"):
        assert fact in taken
    assert "replaces='unetkit'" in message(PluginError, lambda: staged.fusions.add("gate", gate, replaces="another"))


def test_a_name_may_be_replaced_on_purpose(parts: Parts) -> None:
    staged = parts.stage("mine")
    staged.fusions.add("gate", max, replaces="unetkit")
    assert (staged.fusions.get("gate").owner, staged.fusions.get("gate").load()) == ("mine", max)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "a,b", "a=b", "a+b", "-a", "a\nb", '"a"'])
def test_what_is_no_name(parts: Parts, name: str) -> None:
    assert message(PluginError, lambda: parts.fusions.add(name, gate)).startswith(f"{name!r} is not a name")


def test_staged_names_count_only_when_committed(parts: Parts) -> None:
    before = [entry.name for registry in parts for entry in registry.find()]
    staged = parts.stage("mine")
    staged.fusions.add("new", gate)
    staged.encoders.add_library("third", f"{__name__}:more_names", from_library)
    assert [entry.name for registry in parts for entry in registry.find()] == before
    assert list(parts.encoders.libraries) == ["lib", "more"]
    parts.commit(staged)
    assert parts.fusions.get("new").owner == "mine"
    assert parts.encoders.libraries["third"].owner == "mine"
    assert parts.fusions.owner == "unetkit"


def test_a_bare_name_is_looked_up_in_the_registry_first_then_in_each_source(parts: Parts) -> None:
    assert parts.encoders.get("resnet34").load()(3, levels=2) == "resnet34 3 2"
    assert parts.encoders.get("resnet34") == parts.encoders.get("lib/resnet34")
    assert parts.encoders.get("more/resnet34") == parts.encoders.libraries["more"].make_entry(
        KINDS[0], "resnet34", taken=True
    )
    assert parts.encoders.get("own") == parts.encoders.get("more/own")
    parts.encoders.add("resnet34", gate)
    assert parts.encoders.get("resnet34").load() is gate
    assert parts.encoders.get("lib/resnet34").load()(3) == "resnet34 3 5"


def test_a_tag_belongs_to_the_name(parts: Parts) -> None:
    entry = parts.encoders.get("lib/resnet18.a1_in1k")
    assert entry.name == "resnet18.a1_in1k"
    assert entry.load()(1) == "resnet18.a1_in1k 1 5"


def test_a_source_is_registered_once(parts: Parts) -> None:
    staged = parts.stage("mine")
    taken = message(PluginError, lambda: staged.encoders.add_library("lib", "a:b", "c:d"))
    assert "library 'lib'" in taken
    assert "by unetkit" in taken


def test_names_match_globs(parts: Parts) -> None:
    find: Any = lambda pattern: [entry.name for entry in parts.encoders.find(pattern)]  # noqa: E731
    assert find("resnet*") == ["resnet18", "resnet34", "resnet34"]
    assert [entry.qualified_name for entry in parts.encoders.find("resnet34")] == ["resnet34", "more/resnet34"]
    assert find("more/*") == ["resnet34", "own"]
    assert find("*1[68]") == ["resnet18", "vgg16"]
    assert find("PLAIN") == []
    parts.encoders.add("vgg16", gate)
    assert parts.encoders.find("vgg*")[0].load() is gate
    assert [entry.qualified_name for entry in parts.encoders.find("vgg*")] == ["vgg16", "lib/vgg16"]
    assert parts.encoders.names() == [entry.qualified_name for entry in parts.encoders.find()]


@pytest.mark.parametrize("name", ["resnet81", "lib/resnet81", "nolib/resnet18", "Resnet18"])
def test_a_missing_name_says_the_nearest(parts: Parts, name: str) -> None:
    missing = message(UnknownNameError, lambda: parts.encoders.get(name))
    assert f"{name!r} (did you mean resnet18 or resnet34" in missing
    assert missing.endswith("; see `unetkit list encoders`")


@pytest.mark.parametrize("name", ["", "/", "lib/", "zzzzzz"])
def test_a_missing_name_that_nothing_is_near(parts: Parts, name: str) -> None:
    missing = message(UnknownNameError, lambda: parts.encoders.get(name))
    known = "plain, resnet18, resnet34, vgg16, more/resnet34, own"
    assert f"{name!r}; the encoders are {known}; " in missing


def test_a_missing_name_may_be_a_failed_plugins(parts: Parts) -> None:
    parts.plugins += [Plugin("gated"), Plugin("attend"), Plugin("twice"), Plugin("twice", loaded=True)]
    missing = message(UnknownNameError, lambda: parts.stage("x").fusions.get("zzz"))
    assert "'zzz'; the fusions are gate, concat; " in missing
    assert "failed may provide it: gated, attend;" in missing
