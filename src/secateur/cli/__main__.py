"""`python -m secateur.cli`, for where the command is not on the path."""

from secateur.cli import main

main()
