"""Derivatives of training: the tangent forwards, the adjoint backwards."""
