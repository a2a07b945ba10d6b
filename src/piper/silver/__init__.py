"""Commit and seal: rows, rejections and offsets in one transaction; then immutable Parquet chunks."""
