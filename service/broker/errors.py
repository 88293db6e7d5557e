"""What can go wrong with the embedded broker."""


class BrokerError(Exception):
    """The embedded broker cannot do what was asked; the message says what to do about it."""


class PortTakenError(BrokerError):
    """Somebody else took one of the chosen ports before the broker could listen on it."""
