"""A storm of faults on a real cluster, and the proof of what the service promises under it: see `scripts/chaos`."""
