"""Honest numbers: surface distances, metrics, cases to tables."""
