"""Programs to be measured beside the service, each runnable alone."""
