"""The load: a steady stream of messages, idempotent and acknowledged by all, into the input topic."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import Producer

from chaos import messages
from chaos.cluster import INPUT
from chaos.ledger import LedgerError

if TYPE_CHECKING:
    from chaos.ledger import Ledger

TICK_SECONDS: Final = 0.01
FLUSH_SECONDS: Final = 120.0


class Load:
    """Sends in a thread until told to stop.

    Attributes:
        error: what ended it, if something did.
    """

    def __init__(self, servers: str, ledger: Ledger, partitions: int, rate: float, *, bare: bool = False) -> None:
        """Send nothing yet; then `rate` messages a second, maps or bare logits, one partition after the other."""
        self._bare = bare
        self.error: BaseException | None = None
        self._ledger = ledger
        self._partitions = partitions
        self._rate = rate
        self._stopping = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                # A message is stored, however long that takes: one in doubt would prove nothing.
                "message.timeout.ms": 0,
                "socket.timeout.ms": 5000,
                "reconnect.backoff.max.ms": 500,
                "topic.metadata.refresh.interval.ms": 2000,
                "log_level": 0,
            }
        )
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Send no more, and wait until all is acknowledged.

        Raises:
            LedgerError: something was not.
        """
        self._stopping.set()
        self._thread.join()
        self.check()

    def check(self) -> None:
        """See that nothing has gone wrong.

        Raises:
            LedgerError: something has.
        """
        if self.error is not None:
            raise LedgerError(f"the load ended early: {self.error}") from self.error

    def _run(self) -> None:
        try:
            self._send()
            left = self._producer.flush(FLUSH_SECONDS)
        except BaseException as error:  # noqa: BLE001 - told by `check`
            self.error = error
        else:
            if left:
                self.error = LedgerError(f"{left} messages were not acknowledged")

    def _send(self) -> None:
        begun, number = time.monotonic(), 0
        while not self._stopping.wait(TICK_SECONDS):
            due = int((time.monotonic() - begun) * self._rate)
            while number < due and not self._stopping.is_set():
                try:
                    self._producer.produce(
                        INPUT,
                        messages.value(number, bare=self._bare),
                        messages.key(number),
                        number % self._partitions,
                        timestamp=messages.timestamp_ms(number),
                        headers=[*messages.headers(number)],
                        on_delivery=self._delivered,
                    )
                except BufferError:  # a broker is away; what is queued goes first
                    self._producer.poll(0.1)
                    continue
                number += 1
                self._producer.poll(0)
            self._producer.poll(0)

    def _delivered(self, error: Any, message: Any) -> None:
        # An exception would be lost in librdkafka's hands; `check` tells it.
        try:
            if error is None:
                self._ledger.stored(message.partition(), message.offset(), int(message.key()), time.monotonic())
                return
            problem = LedgerError(f"a message was refused: {error}")
        except LedgerError as disorder:
            problem = disorder
        self.error = self.error or problem
        self._stopping.set()
