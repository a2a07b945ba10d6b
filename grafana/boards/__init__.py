"""The dashboards as code: `grafana/build.py` writes what is registered here to `grafana/dashboards/<uid>.json`.

A dashboard is a module with a function that returns its JSON. To add one, write the module and name it in `BOARDS`.
"""

from __future__ import annotations

from collections.abc import Callable

from boards import daemon, publish_health
from boards.queries import Json

BOARDS: tuple[Callable[[], Json], ...] = (publish_health.board, daemon.board)
"""In the order in which a supervisor reads them."""
