"""Errors that a user or an operator can act on.

Every message says what is wrong, with its context, and what to do next; the command line prints that and exits with the
error's code, never a traceback. Bad *data* is not here: it is a value (`events.quarantine.Rejection`), no exception.
"""

from __future__ import annotations

from pathlib import Path

EX_OK = 0
EX_FAILURE = 1
EX_USAGE = 2
EX_CONFIG = 78
"""sysexits.h EX_CONFIG; systemd's RestartPreventExitStatus relies on it."""


class PiperError(Exception):
    """Base of all errors that are shown to a person: `message` says what, `hint` says what to do next."""

    exit_code: int = EX_FAILURE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigError(PiperError):
    """A setting is unknown, has a bad value, or its file cannot be read. Names key, value and source."""

    exit_code = EX_CONFIG


class DataRootError(PiperError):
    """The data root cannot be created, written or filled further."""


class WriterLockedError(PiperError):
    """Another piper process holds the manifest. `holder` says who; `is_writer` that it gave its name as a writer."""

    def __init__(self, message: str, *, holder: str, hint: str = "", is_writer: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.holder = holder
        self.is_writer = is_writer


class ManifestNewerError(PiperError):
    """The manifest was written by a newer piper; this one refuses to touch it."""


class ManifestDamagedError(PiperError):
    """The manifest cannot be opened; `piper rebuild` makes a new one from raw and silver."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            f"the ingest manifest {path} is damaged: {detail}",
            hint="Run `piper rebuild`: it sets the file aside and makes a new manifest from silver and the raw spool.",
        )


class PortInUseError(PiperError):
    """The metrics address is taken."""


class ControlError(PiperError):
    """The running daemon could not be asked, or refused what it was asked."""
