"""Licences of what the service is installed with: each must be one that has been thought about."""

from __future__ import annotations

import re
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from typing import TYPE_CHECKING, Final

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from release.errors import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from release.locks import Pin

# SPDX identifiers. All but the last ask for no more than that their text goes along.
ALLOWED: Final = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "PSF-2.0", "Zlib"),
        # crc32c's: a library of its own, unchanged, that who has the image can replace.
        "LGPL-2.1-or-later",
    }
)
# What packages without an expression write in its place, by the field or the classifier's last part.
SPOKEN: Final[Mapping[str, str]] = {
    "Apache 2": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Python Software Foundation License": "PSF-2.0",
}


def check(pins: Iterable[Pin]) -> dict[str, str]:
    """Return the licence of each package that this platform needs, as its installed metadata say it.

    Raises:
        ReleaseError: one is not installed as it is locked, or its licence is unknown or not allowed.
    """
    found = {}
    wrong = []
    for pin in pins:
        if not pin.needed:
            continue
        try:
            about = metadata(pin.name)
        except PackageNotFoundError:
            wrong.append(f"{pin.name} is not installed: its licence cannot be read")
            continue
        if about["Version"] != pin.version:
            wrong.append(f"{pin.name} is installed as {about['Version']}, and locked as {pin.version}")
            continue
        stated = licence(about)
        if stated is None:
            wrong.append(f"{pin.name} {pin.version} does not say its licence in a way that is understood")
        elif not allowed(stated):
            wrong.append(f"{pin.name} {pin.version} is under {stated}, which nobody has allowed")
        else:
            found[pin.name] = stated
    if wrong:
        raise ReleaseError("\n".join(wrong))
    return found


def licence(about: PackageMetadata) -> str | None:
    """Return a package's licence as an SPDX expression, or None if it says none that is understood."""
    classifiers = [each.rpartition(" :: ")[2] for each in about.get_all("Classifier") or [] if "License ::" in each]
    stated = [SPOKEN.get(each, each) for each in (about["License-Expression"], about["License"]) if each]
    spoken = [SPOKEN[each] for each in classifiers if each in SPOKEN]
    for candidate in (*stated, " AND ".join(dict.fromkeys(spoken))):
        try:
            return str(canonicalize_license_expression(candidate))
        except InvalidLicenseExpression:
            continue
    return None


def allowed(expression: str) -> bool:
    """Tell whether one may keep to an expression by allowed licences alone: all of AND, any of OR, no exceptions."""
    tokens = re.findall(r"[()]|[^\s()]+", expression)
    position = 0

    def either() -> bool:
        nonlocal position
        result = both()
        while position < len(tokens) and tokens[position] == "OR":
            position += 1
            result = both() or result
        return result

    def both() -> bool:
        nonlocal position
        result = single()
        while position < len(tokens) and tokens[position] == "AND":
            position += 1
            result = single() and result
        return result

    def single() -> bool:
        nonlocal position
        token = tokens[position]
        position += 1
        if token == "(":  # noqa: S105 - a bracket
            result = either()
            position += 1
            return result
        return token in ALLOWED

    # What is left over, such as WITH and an exception, is none of the words above.
    return either() and position == len(tokens)
