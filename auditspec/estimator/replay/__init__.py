"""Exact replay: every later step made again."""
