"""Estimators of a stage's counterfactual effect."""
