"""Displacements carried through the Krylov spaces of later stages."""
