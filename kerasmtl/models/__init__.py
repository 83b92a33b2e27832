"""Backbones, heads and layer groups."""
