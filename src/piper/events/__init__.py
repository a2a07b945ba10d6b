"""Parse and validate: lines become typed rows or rejections with a reason, vectorised in DuckDB."""
