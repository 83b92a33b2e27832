"""What several rooms need: files, text, progress, lazy names, TensorFlow helpers."""
