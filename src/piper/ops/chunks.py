"""Are all chunks of silver there and whole? piperd looks itself; of a warehouse at rest the manifest is asked here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb

from piper.layout import Layout
from piper.ops.control import ask
from piper.repair import verified
from piper.settings import Settings
from piper.silver import schema
from piper.silver.diagnosis import translate
from piper.silver.verify import find_broken

ASK_SECONDS = 60.0
"""The daemon looks between two steps of its upkeep, which take seconds."""

Progress = Callable[[int, int], None]


def verify_chunks(settings: Settings, state: str, *, deep: bool, on_progress: Progress) -> dict[str, Any] | None:
    """As `repair.verified`; None while another command holds the manifest, or nothing was ever sealed.

    `state` is that of the status. `deep` reads every value of silver. Raises PiperError.
    """
    layout = Layout.of(settings)
    if state == "busy" or not layout.silver.is_dir():
        return None
    if state == "stopped":
        return _verify_at_rest(layout, deep=deep, on_progress=on_progress)

    def tell(news: dict[str, Any]) -> None:
        on_progress(news["done"], news["total"])

    return ask(layout.control_socket, "verify", {"deep": deep}, tell, timeout_seconds=None if deep else ASK_SECONDS)


def _verify_at_rest(layout: Layout, *, deep: bool, on_progress: Progress) -> dict[str, Any] | None:
    try:
        with duckdb.connect(str(layout.manifest), read_only=True) as con, duckdb.connect() as engine:
            if schema.stored_version(con) < schema.VERSION:
                return None
            found = find_broken(con, layout, engine=(lambda: engine) if deep else None, on_progress=on_progress)
            return verified(con, *found)
    except duckdb.Error as error:
        raise translate(error, layout.manifest) from error
