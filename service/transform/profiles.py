"""Model profiles: how the logits of a model are read and what its outputs hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from service.transform.spans import str_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT: Final = "default"
MAX_LABEL_BYTES: Final = 1024


class Output(StrEnum):
    """A field that an output may hold."""

    PROBABILITIES = "probabilities"
    LOG_PROBABILITIES = "log_probabilities"
    PREDICTED = "predicted"
    LABEL = "label"
    CONFIDENCE = "confidence"
    ENTROPY = "entropy"
    MARGIN = "margin"
    TOP_K = "top_k"


_FROM_PREDICTED: Final = (Output.PREDICTED, Output.LABEL, Output.CONFIDENCE, Output.MARGIN)
_FROM_DISTANCES: Final = (Output.LOG_PROBABILITIES, Output.ENTROPY)


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a model, and what is wanted of it.

    Attributes:
        temperature: the logits' distances are divided by it.
        classes: how many there must be; any number if `None`.
        labels: their names, in order; none if unknown.
        masked: classes whose probability is forced to 0; those beyond the tensor's are ignored.
        top_k: how many of the likeliest classes `top_k` holds.
        outputs: the fields that leave, in order.
        dtype: the width that leaves; the input's own if `None`.
        packed_labels: the labels as msgpack objects.
        needs_predicted: whether an output follows from the highest logit.
        needs_distances: whether an output follows from the distances to it.
    """

    temperature: float = 1.0
    classes: int | None = None
    labels: tuple[str, ...] = ()
    masked: tuple[int, ...] = ()
    top_k: int | None = None
    outputs: tuple[str, ...] = (Output.PROBABILITIES,)
    dtype: str | None = None
    packed_labels: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    needs_predicted: bool = field(init=False, repr=False, compare=False)
    needs_distances: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check that the parts agree.

        Raises:
            ValueError: saying what is wrong.
        """
        if faults := "; ".join(_faults(self)):
            raise ValueError(faults)
        derived = {
            "packed_labels": tuple(str_object(label.encode()) for label in self.labels),
            "needs_predicted": any(map(self.wants, _FROM_PREDICTED)),
            "needs_distances": any(map(self.wants, _FROM_DISTANCES)),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def expected_classes(self) -> int | None:
        """How many classes a tensor must have."""
        return len(self.labels) or self.classes

    def wants(self, output: Output) -> bool:
        """Whether `output` leaves."""
        return output in self.outputs

    def answered_in(self, natural: np.dtype[np.floating]) -> np.dtype[np.floating]:
        """The dtype that leaves where the input's own would be `natural`."""
        return np.dtype(self.dtype) if self.dtype else natural


def _faults(profile: Profile) -> Iterator[str]:
    """What does not fit, in words."""
    smallest, largest = (float(edge) for edge in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
    known = {output.value for output in Output}
    unknown = [name for name in profile.outputs if name not in known]
    for is_fault, words in (
        (not smallest <= profile.temperature <= largest, f"temperature must be from {smallest:.3g} to {largest:.3g}"),
        (profile.classes is not None and profile.classes < 1, "classes must be at least 1"),
        (
            profile.classes and profile.labels and profile.classes != len(profile.labels),
            f"classes is {profile.classes} but there are {len(profile.labels)} labels",
        ),
        (
            any(not 0 < len(label.encode()) <= MAX_LABEL_BYTES for label in profile.labels),
            f"a label must have 1 to {MAX_LABEL_BYTES} bytes",
        ),
        (any(index < 0 for index in profile.masked), "masked holds class indices, which are not negative"),
        (unknown, f"outputs has {unknown[:1]}, which is none of {', '.join(known)}"),
        (not profile.outputs, "outputs must name at least one field"),
        (len(set(profile.outputs)) < len(profile.outputs), "outputs names a field twice"),
        (profile.wants(Output.LABEL) and not profile.labels, "outputs has label, so labels must be given"),
        (
            (profile.top_k is not None) is not profile.wants(Output.TOP_K),
            "top_k must be given if outputs has top_k, and only then",
        ),
        (profile.top_k is not None and profile.top_k < 1, "top_k must be at least 1"),
    ):
        if is_fault:
            yield words


class Selected(NamedTuple):
    """The profile that a message is transformed by.

    Attributes:
        name: of the model; `default` where no profile has the message's name for it.
        profile: its profile.
        refused: whether the message names a model that has none, although it must.
    """

    name: str
    profile: Profile
    refused: bool


class Profiles:
    """The profiles by model name."""

    def __init__(
        self,
        models: Mapping[str, Profile] = MappingProxyType({}),
        *,
        default: Profile = Profile(),
        strict: bool = False,
    ) -> None:
        """Serve `models`, and `default` for all others unless `strict`."""
        self._by_name = {DEFAULT: Selected(DEFAULT, default, refused=False)}
        self._by_name |= {name: Selected(name, profile, refused=False) for name, profile in models.items()}
        self._other = Selected(DEFAULT, default, refused=strict)
        self.matter = bool(models) or strict

    def select(self, field_model: bytes | None, header_model: bytes | None) -> Selected:
        """The profile of a message whose field and header say this; the field wins if it is UTF-8."""
        if self.matter:
            for given in (field_model, header_model):
                if given is not None and (name := _decoded(given)) is not None:
                    return self._by_name.get(name, self._other)
        return self._by_name[DEFAULT]


def _decoded(name: bytes) -> str | None:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None
