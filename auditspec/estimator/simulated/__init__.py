"""Simulated replay: the later stages trained again in a simulated order, beside the run simulated likewise."""
