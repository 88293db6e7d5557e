"""Files of this repository that are made from its code: `python -m generate`."""
