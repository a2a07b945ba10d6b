"""The dashboards as code: `grafana/build.py` writes what is registered here to `grafana/dashboards/<uid>.json`.

A dashboard is a module with a function that returns its JSON. To add one, write the module and name it in `BOARDS`.
"""

from __future__ import annotations

from collections.abc import Callable

from boards import (
    daemon,
    data_quality,
    farm_pressure,
    publish_health,
    render_health,
    storage_growth,
    tool_reliability,
)
from boards.queries import Json

BOARDS: tuple[Callable[[], Json], ...] = (
    publish_health.board,
    render_health.board,
    farm_pressure.board,
    tool_reliability.board,
    storage_growth.board,
    data_quality.board,
    daemon.board,
)
"""In the order in which a supervisor reads them."""
