"""Labels files: rows, splits, images and tables, as `tf.data.Dataset`."""

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
