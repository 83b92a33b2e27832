"""Modules: SavedModels by handle, fetched, unpacked, hashed and kept. None of it needs TensorFlow
to be imported, but for `gs://` and the other schemes of tf.io.gfile."""
