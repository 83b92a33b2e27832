"""The embedded extractor: its SavedModel, and the scripts that draw its images and train it."""
