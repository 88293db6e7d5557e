"""The service's verdicts on records, held against the reference's."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from reference import Limits, Profile, Profiles, Refusal, agrees, expect

from service.transform import pipeline as service
from service.transform import profiles as settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.transform.refusals import InvalidMessage

    # An output, or the reason, words and place of a refusal.
    Verdict = bytes | tuple[str, str, int | None]
    # A value, and the value of its header `model`.
    Record = tuple[bytes | None, bytes | None]

LIMITS: Final = Limits(max_message_bytes=1 << 16, max_classes=16)


def made(asked: Profiles, limits: Limits = LIMITS) -> service.Pipeline:
    """A fresh pipeline of the service with these profiles."""

    def profile(each: Profile) -> settings.Profile:
        return settings.Profile(**{field.name: getattr(each, field.name) for field in dataclasses.fields(each)})

    models = {name: profile(each) for name, each in asked.models.items()}
    known = settings.Profiles(models, default=profile(asked.default), strict=asked.strict)
    return service.Pipeline(service.Limits(limits.max_message_bytes, limits.max_classes), known)


def judged(pipeline: service.Pipeline, records: Sequence[Record]) -> list[Verdict]:
    """What becomes of each record; its output or its refusal, never both, never neither."""
    outcome = pipeline.transform([value for value, _ in records], [model for _, model in records])
    assert len(outcome.outputs) == len(records)
    assert set(outcome.refusals) == {at for at, output in enumerate(outcome.outputs) if output is None}
    assert outcome.columnar + outcome.general == len(records) - len(outcome.refusals)
    return [
        told(outcome.refusals[at]) if output is None else bytes(output) for at, output in enumerate(outcome.outputs)
    ]


def told(refusal: InvalidMessage) -> Verdict:
    return str(refusal.reason), refusal.detail, refusal.at


def check(record: Record, asked: Profiles, found: Verdict, limits: Limits = LIMITS) -> None:
    """A record was rightly answered or rightly refused."""
    value, model = record
    expected = expect(value, model, limits, asked)
    message = f"for the message {value.hex() if value is not None else None}"
    if isinstance(expected, Refusal):
        assert not isinstance(found, bytes), f"not refused as {expected.reason} but answered {message}"
        assert found[0] == expected.reason, f"{found} {message}"
    else:
        assert isinstance(found, bytes), f"not answered but {found} {message}"
        fault = agrees(found, expected)
        assert fault is None, f"{fault} {message}, answered with {found.hex()}"


def verdict_on(record: Record, asked: Profiles, limits: Limits = LIMITS) -> Verdict:
    """What becomes of a record alone, which must be right, and the same among its like."""
    (alone,) = judged(made(asked, limits), [record])
    check(record, asked, alone, limits)
    assert judged(made(asked, limits), [record] * 3) == [alone] * 3
    return alone


def answer_of(message: bytes, profile: Profile) -> bytes:
    """The output under a profile."""
    found = verdict_on((message, None), Profiles(default=profile))
    assert isinstance(found, bytes), found
    return found


def reason_of(message: bytes | None, asked: Profiles, model: bytes | None = None, limits: Limits = LIMITS) -> str:
    """The reason for which a message is refused."""
    found = verdict_on((message, model), asked, limits)
    assert not isinstance(found, bytes), found
    return found[0]
