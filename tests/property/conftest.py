"""How deep the property tests go: with `--hypothesis-profile=deep` they take an hour instead of minutes.

Where `CI` is set they try the same examples each time: what gates a change must not depend on luck. At a desk they are
new ones.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("ci", max_examples=100, derandomize=True)
settings.register_profile("deep", max_examples=4000)
