"""The commands of `piper`, one module a family. `piper.cli` registers them; nothing else imports them.

A command parses, calls and shows; the work is elsewhere. DuckDB, pyarrow and what needs them are imported inside the
functions, so that `piper --help` is there at once.
"""
