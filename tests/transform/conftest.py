"""How hard hypothesis tries: `default` for every run, `long` for a search that takes its time."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("default", max_examples=100, deadline=None)
settings.register_profile("long", max_examples=20_000, deadline=None)
settings.load_profile(os.environ.get("SOFTMAX_TEST_HYPOTHESIS_PROFILE", "default"))
