"""Behaviours: metrics per example, on slices of evaluation data."""
