"""Paired replay: sampled steps beside the recorded run."""
