"""Models kept with the project, and where exports go by default."""
