"""Handles of SavedModels: resolved, downloaded, hashed and kept, without TensorFlow."""
