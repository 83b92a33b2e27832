"""The embedded extractor: its SavedModel, and the scripts that draw its pictures and train it."""
