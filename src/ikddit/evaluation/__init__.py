"""Baselines, scores, timing and the report."""
