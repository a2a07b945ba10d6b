"""See piper at work: a simulated spool and a live terminal view."""
