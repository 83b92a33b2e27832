"""Backbones and heads: `build_model` and what it builds on."""
