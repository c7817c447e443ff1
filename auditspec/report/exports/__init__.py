"""One file an export of the results."""
