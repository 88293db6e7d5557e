"""Profiles: what may be asked of a model's outputs, and which profile a message gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transform_messages import packed

from service.transform.dtypes import FLOAT32, FLOAT64
from service.transform.profiles import DEFAULT, MAX_LABEL_BYTES, Output, Profile, Profiles

CATS = ("cat", "dog")


def test_a_profile_of_nothing_asks_for_probabilities() -> None:
    """As they are, of any number of classes."""
    profile = Profile()
    assert (profile.temperature, profile.expected_classes, profile.masked, profile.top_k) == (1, None, (), None)
    assert [output for output in Output if profile.wants(output)] == [Output.PROBABILITIES]
    assert not profile.needs_predicted
    assert not profile.needs_distances
    assert [profile.answered_in(dtype) for dtype in (FLOAT32, FLOAT64)] == [FLOAT32, FLOAT64]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 1e-38}, "temperature"),
        ({"temperature": 3.5e38}, "temperature"),
        ({"classes": 0}, "classes"),
        ({"classes": -2}, "classes"),
        ({"classes": 3, "labels": CATS}, "classes is 3 but there are 2 labels"),
        ({"labels": ("cat", "")}, "label"),
        ({"labels": ("x" * (MAX_LABEL_BYTES + 1),)}, "label"),
        ({"labels": ("\N{SNOWMAN}" * (MAX_LABEL_BYTES // 3 + 1),)}, "label"),
        ({"masked": (0, -1)}, "masked"),
        ({"outputs": ()}, "at least one"),
        ({"outputs": ("probabilities", "predicted", "probabilities")}, "twice"),
        ({"outputs": ("probability",)}, "probability"),
        ({"outputs": ("label",)}, "labels"),
        ({"outputs": ("top_k",)}, "top_k"),
        ({"top_k": 3}, "top_k"),
        ({"outputs": ("top_k",), "top_k": 0}, "top_k"),
        ({"outputs": ("top_k",), "top_k": -1}, "top_k"),
    ],
)
def test_settings_that_make_no_profile_are_refused_in_words(settings: dict[str, Any], words: str) -> None:
    """Naming what is wrong."""
    with pytest.raises(ValueError, match=words):
        Profile(**settings)


def test_all_faults_are_told_at_once() -> None:
    """So that they can be cured at once."""
    with pytest.raises(ValueError, match=r"temperature.*masked.*twice"):
        Profile(temperature=0, masked=(-1,), outputs=("entropy", "entropy"))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": float(np.finfo(np.float32).tiny)},
        {"temperature": float(np.finfo(np.float32).max)},
        {"classes": 1},
        {"classes": 2, "labels": CATS},
        {"labels": ("x" * MAX_LABEL_BYTES, "\0", " ", "\N{SNOWMAN}")},
        {"labels": ("same", "same")},
        {"masked": (0, 0, 10**9)},
        {"outputs": tuple(Output), "labels": CATS, "top_k": 10**9},
        *({"dtype": dtype} for dtype in ("float32", "float64")),
    ],
)
def test_settings_at_their_limits_make_a_profile(settings: dict[str, Any]) -> None:
    """The limits are inclusive."""
    Profile(**settings)


def test_labels_tell_how_many_classes_there_must_be() -> None:
    """As does `classes` where there are none."""
    assert Profile(labels=CATS).expected_classes == 2
    assert Profile(classes=7).expected_classes == 7
    assert Profile(classes=2, labels=CATS).expected_classes == 2


def test_labels_are_ready_msgpack_text() -> None:
    """Of every length that a label may have."""
    labels = ("a", "x" * 31, "x" * 32, "x" * 255, "x" * 256, "x" * MAX_LABEL_BYTES, "\N{SNOWMAN}")
    assert Profile(labels=labels).packed_labels == tuple(map(packed, labels))


def test_a_forced_dtype_is_what_leaves() -> None:
    """Whatever came."""
    for name, dtype in (("float32", FLOAT32), ("float64", FLOAT64)):
        assert [Profile(dtype=name).answered_in(natural) for natural in (FLOAT32, FLOAT64)] == [dtype] * 2


@pytest.mark.parametrize("output", list(Output))
def test_only_what_an_output_follows_from_is_needed(output: Output) -> None:
    """All else would be computed for nothing."""
    settings: dict[str, Any] = {"outputs": (output.value,), "labels": CATS}
    if output is Output.TOP_K:
        settings["top_k"] = 1
    profile = Profile(**settings)
    assert profile.needs_predicted is (output in {"predicted", "label", "confidence", "margin"})
    assert profile.needs_distances is (output in {"log_probabilities", "entropy"})


# Selection

OTHER = Profile(temperature=9)
ALPHA = Profile(temperature=2)
BETA = Profile(temperature=3)
MODELS = {"alpha": ALPHA, "bêta": BETA}


@pytest.mark.parametrize(
    ("field", "header", "name"),
    [
        (None, None, DEFAULT),
        (None, b"alpha", "alpha"),
        (b"alpha", None, "alpha"),
        (b"alpha", "bêta".encode(), "alpha"),
        ("bêta".encode(), b"alpha", "bêta"),
        (b"default", b"alpha", DEFAULT),
        (None, b"default", DEFAULT),
        (None, b"\xff\xfe", DEFAULT),
        (None, "bêta".encode("latin-1"), DEFAULT),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_the_field_selects_a_profile_and_else_the_header(
    field: bytes | None, header: bytes | None, name: str, *, strict: bool
) -> None:
    """A header that is no UTF-8 is as if absent; `default` is a name like any other."""
    found = Profiles(MODELS, default=OTHER, strict=strict).select(field, header)
    assert found == (name, {DEFAULT: OTHER, **MODELS}[name], False)


@pytest.mark.parametrize(("field", "header"), [(b"\xff\xfe", b"alpha"), (b"\xc3", b"alpha")])
def test_a_field_that_is_no_utf_8_leaves_the_choice_to_the_header(field: bytes, header: bytes) -> None:
    """A name that cannot be read is as if absent."""
    assert Profiles(MODELS, default=OTHER).select(field, header).name == "alpha"


@pytest.mark.parametrize(
    ("field", "header"),
    [(b"gamma", None), (None, b"gamma"), (b"gamma", b"alpha"), (b"", b"alpha"), (None, b""), (None, b"alpha\0")],
)
def test_a_name_without_a_profile_gets_the_default_or_is_refused(field: bytes | None, header: bytes | None) -> None:
    """The latter only where models are strict; a field with such a name wins over a header with a known one."""
    assert Profiles(MODELS, default=OTHER).select(field, header) == (DEFAULT, OTHER, False)
    assert Profiles(MODELS, default=OTHER, strict=True).select(field, header) == (DEFAULT, OTHER, True)


def test_strictness_needs_no_models() -> None:
    """Every name is then unknown, but a message without one is not."""
    profiles = Profiles(strict=True)
    assert profiles.matter
    assert profiles.select(None, b"alpha").refused
    assert not profiles.select(None, None).refused
    assert not profiles.select(b"default", None).refused


def test_without_models_names_do_not_matter() -> None:
    """Nothing needs to look for them."""
    profiles = Profiles(default=OTHER)
    assert not profiles.matter
    assert profiles.select(b"alpha", b"beta") == (DEFAULT, OTHER, False)
    assert Profiles(MODELS).matter
