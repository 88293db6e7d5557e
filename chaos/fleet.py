"""The instances of the service: processes that are killed, paused, started again, and that do not outlive the storm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

from chaos.instance import CONTROLS_VARIABLE, FAILPOINTS_VARIABLE
from service.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# A stop has a drain budget and closes clients after it; beyond this it hangs.
STOP_SECONDS: Final = 30.0
START_SECONDS: Final = 60.0
SECONDS_BEFORE_RESTART: Final = 0.5

_ASSIGNED: Final = b'"event": "assigned"'

Ending = Literal["kill", "stop", "failpoint"]


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a process.

    Attributes:
        instance: whose.
        code: negative for a signal.
        wanted: what was done to it; `None` if it ended by itself.
        joined: it had become a member of the group.
        at: monotonic seconds.
        last_words: the end of its log.
    """

    instance: str
    code: int
    wanted: Ending | None
    joined: bool
    at: float
    last_words: str

    @property
    def is_finding(self) -> bool:
        """Whether nobody asked for such an end."""
        if self.code == ExitCode.BROKER and not self.joined:
            return False  # by design a start tries only for as long as a request may take
        if self.wanted == "stop":
            # The last two: not finished within the budget, and asked before Python had come to listen.
            return self.code not in {ExitCode.DRAINED, ExitCode.LOST_PROGRESS, -signal.SIGTERM}
        return self.wanted is None or self.code != -signal.SIGKILL


class FleetError(Exception):
    """The service does not accept what the storm asks of it."""


class Instance:
    """One instance, which is started again when it ends by itself."""

    def __init__(self, name: str, fleet: Fleet, environment: Mapping[str, str]) -> None:
        """Start nothing yet."""
        self.name = name
        self._fleet = fleet
        self._environment = environment
        self._log = fleet.directory / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._wanted: Ending | None = None
        self._log_start = 0

    async def start(self, failpoint: str = "") -> None:
        """Start it, unless it runs; armed with a failpoint such as `committed=3` if one is given."""
        if self.runs:
            return
        self._wanted = "failpoint" if failpoint else None
        module, added = "service", dict[str, str]()
        if failpoint or self._fleet.control:
            module = "chaos.instance"
            added = {FAILPOINTS_VARIABLE: failpoint, CONTROLS_VARIABLE: self._fleet.control}
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", module, "run"),
                env={**self._environment, **added, "SOFTMAX_KAFKA__CLIENT_ID": self.name},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._watching = asyncio.create_task(self._watch(self._process))

    @property
    def runs(self) -> bool:
        """Whether there is a process, be it paused."""
        return self._process is not None and self._process.returncode is None

    async def joined(self) -> None:
        """Wait until it has been assigned partitions, or has ended, or too long."""
        deadline = time.monotonic() + START_SECONDS
        while self.runs and time.monotonic() < deadline and _ASSIGNED not in self._words():  # noqa: ASYNC110 - a log tells nobody
            await asyncio.sleep(0.1)

    async def kill(self) -> None:
        """SIGKILL, and its end."""
        self._wanted = "kill"
        self._signal(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> None:
        """SIGTERM, and its end; one that hangs is killed, which is a finding."""
        self._wanted = "stop"
        self._signal(signal.SIGTERM)
        if not await self.ended(STOP_SECONDS):
            self._signal(signal.SIGKILL)
            await self.ended()

    def pause(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def ended(self, within: float | None = None) -> bool:
        """Wait for its end; tell whether it has come."""
        if self._watching is not None:
            await asyncio.wait({self._watching}, timeout=within)
        return not self.runs

    async def destroy(self) -> None:
        """Let nothing of it run any more."""
        if self._watching is not None:
            self._watching.cancel()
        self._signal(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        words = self._words()
        self._fleet.exits.append(
            Exit(
                self.name,
                code,
                self._wanted,
                joined=_ASSIGNED in words,
                at=time.monotonic(),
                last_words=words[-4000:].decode(errors="replace"),
            )
        )
        if self._wanted is None:
            await asyncio.sleep(SECONDS_BEFORE_RESTART)
            if self._wanted is None:
                await self.start()

    def _words(self) -> bytes:
        """What it has written since its start."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read()


class Fleet:
    """All instances.

    Attributes:
        directory: where their logs are.
        control: the safeguard that is switched off in all of them, or nothing.
        exits: of processes, in their order.
        instances: those that are there all the time.
    """

    def __init__(
        self, directory: Path, settings: Sequence[Mapping[str, object]], count: int, control: str = ""
    ) -> None:
        """Start nothing yet.

        Args:
            directory: where their logs go.
            settings: of the services in a chain, of which instances are made in turn.
            count: how many instances there are all the time.
            control: the safeguard to switch off, or nothing.
        """
        ours = {name: text for name, text in os.environ.items() if not name.startswith("SOFTMAX_")}
        self.directory = directory
        self._environments = [
            {**ours, **{f"SOFTMAX_{name.upper()}": str(value) for name, value in of_service.items()}}
            for of_service in settings
        ]
        self.control = control
        self.exits: list[Exit] = []
        self._all: list[Instance] = []
        self.instances: Sequence[Instance] = [self.new(f"instance-{index}") for index in range(count)]

    def new(self, name: str) -> Instance:
        """One more, which is not started."""
        environment = self._environments[len(self._all) % len(self._environments)]
        self._all.append(Instance(name, self, environment))
        return self._all[-1]

    async def __aenter__(self) -> Self:
        """Start them and wait until they have joined."""
        try:
            for instance in self.instances:
                await instance.start()
            for instance in self.instances:
                await instance.joined()
                self.check()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all that still runs."""
        for instance in self._all:
            await instance.destroy()

    def check(self) -> None:
        """See that the service accepts its settings.

        Raises:
            FleetError: it does not.
        """
        for exit_ in self.exits:
            if exit_.code == ExitCode.CONFIGURATION:
                raise FleetError(exit_.last_words)

    async def stop(self) -> None:
        """Stop all in order."""
        await asyncio.gather(*(instance.stop() for instance in self._all if instance.runs))
