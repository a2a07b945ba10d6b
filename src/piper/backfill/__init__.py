"""Backfill: silver of past days becomes what a fresh ingest of the present raw files would give.

Replay does the same with the lines in quarantine.
"""
