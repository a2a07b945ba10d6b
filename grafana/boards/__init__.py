"""The dashboards as code: `grafana/build.py` writes what is registered here to `grafana/dashboards/<uid>.json`.

A dashboard is a module with a function that returns its JSON. To add one, write the module and name it in `BOARDS`.
"""

from __future__ import annotations

from collections.abc import Callable

from boards import daemon, data_quality, publish_health, tool_reliability
from boards.queries import Json

BOARDS: tuple[Callable[[], Json], ...] = (
    publish_health.board,
    tool_reliability.board,
    data_quality.board,
    daemon.board,
)
"""In the order in which a supervisor reads them."""
