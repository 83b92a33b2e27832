"""Labels files: rows, splits, images and tables, as `tf.data.Dataset`."""

from kerasmtl.utils.lazy import lazy_names

__all__ = ["default_augmentation", "with_known"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "default_augmentation": "kerasmtl.data.augmentation",
        "with_known": "kerasmtl.masking",
    },
)
