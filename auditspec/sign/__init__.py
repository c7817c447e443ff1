"""Signing and verifying packets."""
