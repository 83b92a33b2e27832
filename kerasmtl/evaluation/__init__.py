"""Scores on known labels, reports, thresholds and temperatures."""
