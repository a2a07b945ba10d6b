"""How deep the property tests go: with `--hypothesis-profile=deep` they take an hour instead of minutes."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("ci", max_examples=100)
settings.register_profile("deep", max_examples=4000)
