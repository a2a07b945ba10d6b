"""Tail: finds the spool files of every host and user and reads their new lines by byte offset."""
