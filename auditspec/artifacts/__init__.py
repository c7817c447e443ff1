"""Artifacts: digests, manifests, code, data sets, and checkpoints."""
