"""`python -m unipelt` is the command line."""

from unipelt.cli import main

main()
