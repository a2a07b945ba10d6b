"""KPI models: one SQL file each, refreshed for the dates that changed."""
