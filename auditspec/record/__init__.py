"""Training records: writing, reading, and re-running them."""
