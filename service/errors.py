"""How the service ends: exit codes, and errors that carry one."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The documented exit codes of every command."""

    DRAINED = 0
    REFUSED = 1
    CONFIGURATION = 2
    BROKER = 3
    DEAD_LETTER_LIMIT = 4
    LOST_PROGRESS = 5
    BUG = 70


class ServiceError(Exception):
    """A condition that ends the service, told to the person who runs it.

    Attributes:
        code: the process's exit code.
        cure: what to change, naming the setting.
    """

    code = ExitCode.BUG

    def __init__(self, problem: str, cure: str = "") -> None:
        """State the problem in one sentence and, in another, what to do about it."""
        super().__init__(f"{problem}. {cure}." if cure else f"{problem}.")
        self.cure = cure


class ConfigurationError(ServiceError):
    """A setting is wrong or asks for something that this machine cannot give."""

    code = ExitCode.CONFIGURATION


class BrokerUnusableError(ServiceError):
    """Kafka cannot be reached or refuses what the service needs of it."""

    code = ExitCode.BROKER


class BrokerAwayError(BrokerUnusableError):
    """Kafka does not answer now; it may in a moment."""


class DeadLetterLimitError(ServiceError):
    """So many records are refused that a person should look."""

    code = ExitCode.DEAD_LETTER_LIMIT


class LostProgressError(ServiceError):
    """Records may be missing, or could not be finished in time."""

    code = ExitCode.LOST_PROGRESS
