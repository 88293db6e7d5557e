"""What is wrong with a release, as a sentence for people."""


class ReleaseError(Exception):
    """Something stands against the release; the message says what."""
