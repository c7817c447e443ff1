"""Confidence checks: one per file, one interface."""
