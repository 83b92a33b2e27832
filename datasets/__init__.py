"""Small data sets drawn by scripts kept beside them."""
