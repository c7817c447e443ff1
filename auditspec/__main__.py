"""`python -m auditspec`: the command line."""

from auditspec.cli.main import main

main()
