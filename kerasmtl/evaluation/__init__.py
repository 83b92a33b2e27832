"""Exact scores on known labels, reports, intervals, thresholds and temperatures."""
