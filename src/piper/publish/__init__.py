"""What readers open: the catalog of views and the snapshots that are swapped in by rename."""
