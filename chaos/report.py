"""The outcome for people, and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from service.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaos.storm import Outcome

COLUMNS = ("messages", "lost", "duplicated", "reordered", "corrupted", "rewinds")


def table(outcome: Outcome) -> str:
    """The outcome in lines."""
    return "\n".join(_lines(outcome))


def _lines(outcome: Outcome) -> Iterator[str]:
    options, verdict = outcome.options, outcome.verdict
    yield (
        f"{options.guarantee}, seed {options.seed}: {outcome.messages} messages ({outcome.refused} to refuse) in"
        f" {outcome.seconds:.0f} s, {options.instances} instances, {len(outcome.strikes)} faults"
    )
    if options.chained:
        yield "two services in a chain"
    if options.control:
        yield f"control: without the safeguard {options.control}"
    yield ""
    yield "".join(f"{title:>12}" for title in ("reader", *COLUMNS))
    for name, tally in verdict.readers.items():
        yield f"{name:>12}" + "".join(f"{getattr(tally, column):>12}" for column in COLUMNS)
    yield f"records on which the readers disagree: {verdict.disagreements}"
    yield f"longest stall: {verdict.longest_stall_s:.1f} s"
    yield ""
    yield f"{'fault':>20}{'times':>8}{'recovery s: median':>20}{'most':>8}"
    for name, seconds in sorted(verdict.recovery_s.items()):
        yield f"{name:>20}{len(seconds):>8}{median(seconds):>20.1f}{max(seconds):>8.1f}"
    yield ""
    yield "ends of processes: " + ", ".join(f"{what} x{count}" for what, count in sorted(_exits(outcome).items()))
    for exit_ in outcome.exits:
        if exit_.code == ExitCode.BROKER and not exit_.is_finding:
            yield f"note: {exit_.instance} gave up its start: {exit_.last_words.splitlines()[-1]}"
    for exit_ in outcome.findings:
        yield f"FINDING: {exit_.instance} ended with {exit_.code} ({exit_.wanted or 'by itself'})"
        yield "\n".join(f"    {line[:400]}" for line in exit_.last_words.splitlines()[-8:])
    for name, tally in verdict.readers.items():
        for example in tally.examples[:20]:
            yield f"FINDING: {name}: {example}"
    yield "sound" if outcome.is_sound else f"NOT SOUND; logs in {outcome.logs}"


def document(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON knows it; times are seconds."""
    first = min((strike.begun for strike in outcome.strikes), default=0.0)
    return {
        "options": asdict(outcome.options),
        "seconds": round(outcome.seconds, 1),
        "messages": outcome.messages,
        "to_refuse": outcome.refused,
        "sound": outcome.is_sound,
        "verdict": asdict(outcome.verdict),
        "faults": [
            {
                "name": strike.name,
                "detail": strike.detail,
                "at": round(strike.begun - first, 2),
                "seconds": round(strike.healed - strike.begun, 2),
            }
            for strike in outcome.strikes
        ],
        "exits": _exits(outcome),
        "findings": [
            {"instance": exit_.instance, "code": exit_.code, "wanted": exit_.wanted, "last_words": exit_.last_words}
            for exit_ in outcome.findings
        ],
    }


def _exits(outcome: Outcome) -> dict[str, int]:
    return dict(Counter(f"{exit_.wanted or 'by itself'}: {exit_.code}" for exit_ in outcome.exits))
