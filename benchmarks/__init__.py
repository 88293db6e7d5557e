"""How fast the service is, and beside whom."""
