"""piper: a telemetry lakehouse daemon. spool → events → silver → gold → publish; `daemon` and `cli` compose them."""

__version__ = "0.1.0"
