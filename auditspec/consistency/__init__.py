"""Whether a spec fits what it is about: record, code, data, weights, keys, device. Runs no code."""
