"""Running piper: metrics, health, logs, control socket, doctor."""
