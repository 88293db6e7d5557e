"""A release: one version everywhere, a changelog that is one, and the steps that change them."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

import service
from release import artefacts, version
from release.changelog import sections
from release.errors import ReleaseError

ROOT: Final = Path(__file__).resolve().parent.parent
KNOWN_PAST: Final = {
    "docs/performance.md",  # says with which version was measured
    "CHANGELOG.md",
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that repeat the version, and the changelog, to be changed."""
    for name in (*version.PLACES, version.CHANGELOG):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return tmp_path


def changelog(copy: Path, text: str) -> None:
    (copy / version.CHANGELOG).write_text(f"# Changelog\n\n{text}", encoding="utf-8")


# --- the version ------------------------------------------------------------------------------


def test_every_place_says_the_same_version() -> None:
    """And so do the package's metadata and the changelog; the command's is looked at where artefacts are installed."""
    assert version.current() == service.__version__ == importlib.metadata.version("softmax-service")
    version.check()


def test_the_metadata_takes_it_from_the_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == version.SOURCE


def test_no_other_file_repeats_it() -> None:
    """A new place belongs into `version.PLACES`."""
    said = re.compile(
        rf"softmax[-_ ]service(:|==?| v?|-){re.escape(service.__version__)}\b|app\.kubernetes\.io/version: "
    )
    found = {
        name
        for name in artefacts.tracked()
        if not name.startswith(("tests/", "release/"))
        and said.search((ROOT / name).read_text(encoding="utf-8", errors="replace"))
    }
    assert found - KNOWN_PAST <= set(version.PLACES)


def test_the_image_s_label_takes_it_from_the_argument() -> None:
    said = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert 'org.opencontainers.image.version="$VERSION"' in said.rpartition("FROM ")[2].partition("ARG VERSION=")[2]


@pytest.mark.parametrize("place", version.PLACES)
def test_a_place_that_lags_behind_is_named(copy: Path, place: str) -> None:
    file = copy / place
    file.write_text(file.read_text(encoding="utf-8").replace(service.__version__, "0.0.9", 1), encoding="utf-8")
    with pytest.raises(ReleaseError, match=r"0\.0\.9"):
        version.check(root=copy)


# --- the steps --------------------------------------------------------------------------------


def test_a_version_is_prepared_checked_and_told_of(copy: Path) -> None:
    changelog(copy, "## Unreleased\n\n### Fixed\n\n- It.\n")
    version.prepare("9.8.7", copy)
    assert version.current(copy) == "9.8.7"
    today = datetime.now(UTC).date().isoformat()
    assert f"\n## 9.8.7 - {today}\n\n### Fixed\n" in (copy / version.CHANGELOG).read_text(encoding="utf-8")
    assert version.disagreements(copy) == []
    version.check("v9.8.7", copy)
    assert version.notes(copy) == "### Fixed\n\n- It.\n"
    for place in version.PLACES:
        assert service.__version__ not in re.findall(
            version.PLACES[place], (copy / place).read_text("utf-8"), re.MULTILINE
        )
    with pytest.raises(ReleaseError, match="nothing to release"):
        version.prepare("9.8.8", copy)
    with pytest.raises(ReleaseError, match=r"v9\.8\.6"):
        version.check("v9.8.6", copy)


def test_what_is_unreleased_is_not_released(copy: Path) -> None:
    changelog(copy, "## Unreleased\n\n### Fixed\n\n- It.\n")
    with pytest.raises(ReleaseError, match="begins with Unreleased"):
        version.check(f"v{service.__version__}", copy)


@pytest.mark.parametrize("wrong", ["v9.9.9", "9.9.9-beta", "newest", "9.09.9"])
def test_only_versions_in_their_normal_form_are_prepared(copy: Path, wrong: str) -> None:
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    with pytest.raises(ReleaseError, match="normal form"):
        version.prepare(wrong, copy)
    assert before == {file: file.read_bytes() for file in before}


@pytest.mark.parametrize("older", ["0.0.9", "2.0.0rc1", "2.0.0"])
def test_only_newer_versions_are_prepared(copy: Path, older: str) -> None:
    changelog(copy, "## Unreleased\n\n### Fixed\n\n- It.\n\n## 2.0.0 - 2026-11-01\n\n### Added\n\n- That.\n")
    with pytest.raises(ReleaseError, match="not newer"):
        version.prepare(older, copy)


# --- the changelog ----------------------------------------------------------------------------


def test_the_changelog_is_one_and_its_newest_version_is_this_one() -> None:
    top, *_ = found = sections((ROOT / version.CHANGELOG).read_text(encoding="utf-8"))
    assert top.version in {None, service.__version__}
    assert [each.version for each in found if each.version][:1] in ([], [service.__version__])


CHANGES: Final = "\n### Added\n\n- It.\n\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no section"),
        (f"## 1.0.0 - 2026-11-01\n{CHANGES}## Unreleased\n{CHANGES}", "at the top"),
        (f"## 1.0.0 - 2026-11-01\n{CHANGES}## 1.1.0 - 2026-10-01\n{CHANGES}", "not newer"),
        (f"## 1.1.0 - 2026-10-01\n{CHANGES}## 1.0.0 - 2026-11-01\n{CHANGES}", "not newer"),
        (f"## 1.1.0\n{CHANGES}", "heading"),
        (f"## 1.1.0 - 2026-13-01\n{CHANGES}", "heading"),
        (f"## one - 2026-11-01\n{CHANGES}", "heading"),
        ("## 1.1.0 - 2026-11-01\n\nNothing much.\n", "heading"),
        ("## 1.1.0 - 2026-11-01\n\n### Improved\n\n- It.\n", "Improved"),
        (f"## Unreleased\n{CHANGES}{CHANGES}", "twice"),
        ("## Unreleased\n\n### Added\n\n### Fixed\n\n- It.\n", "has none"),
    ],
)
def test_a_changelog_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(ReleaseError, match=said):
        sections(f"# Changelog\n\n{text}")


def test_a_changelog_is_read() -> None:
    old, new = sections(f"# C\n\n## Unreleased\n\n## 1.0.0rc1 - 2026-11-01\n{CHANGES}")[::-1]
    assert (old.version, str(old.released), old.text) == ("1.0.0rc1", "2026-11-01", CHANGES)
    assert (new.version, new.released) == (None, None)
