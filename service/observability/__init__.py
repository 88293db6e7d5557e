"""What the service shows of itself: events, metrics, logs and HTTP endpoints."""
