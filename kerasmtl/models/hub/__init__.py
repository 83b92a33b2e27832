"""Handles of SavedModels: resolved, downloaded, hashed and kept, without TensorFlow.

A handle is what a user writes: a name, a path, a URL, "kaggle:…" or "hf:…".
`handles.resolve_handle` turns it into a local folder, with `download` for what comes over the
network and `cache` for what is kept; `embedded` lists what comes with the package. Nothing here
imports TensorFlow at the top, so that `kerasmtl new`, `check` and `vendor` start at once.
"""
