"""Labels files: rows, splits, images and tables, as `tf.data.Dataset`.

    readers -> labels, inputs -> manifest (duplicates, splits, audit, leaks) -> dataset

`Manifest` reads a file and divides its rows, `make_dataset` turns rows into batches, and an `Input`
says what one kind of rows is, from the cell of a file to the signature of a served model.
TensorFlow is imported by `images`, `dataset` and `augmentation`, and by methods of `Input` that
need it.
"""

from kerasmtl.utils.lazy import lazy_names

__all__ = ["Image", "Input", "Signature", "Table", "default_augmentation", "with_known"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Image": "kerasmtl.data.inputs",
        "Input": "kerasmtl.data.inputs",
        "Signature": "kerasmtl.data.inputs",
        "Table": "kerasmtl.data.inputs",
        "default_augmentation": "kerasmtl.data.augmentation",
        "with_known": "kerasmtl.masking",
    },
)
