"""Street scenes with four labels, and the script that draws them."""
