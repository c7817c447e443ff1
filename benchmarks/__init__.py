"""Measurements of auditspec: see README.md beside this file."""
