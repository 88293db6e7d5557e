"""How a release is made and what it rests on: `python -m release`."""
