"""`python -m service` is the command `softmax-service`."""

from service.cli import main

main()
