"""Trained models as SavedModels, LiteRT and ONNX, each verified before it appears."""

from kerasmtl.utils.lazy import lazy_names

__all__ = ["ConvertedModel", "convert_model"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ConvertedModel": "kerasmtl.export.converted_model",
        "convert_model": "kerasmtl.export.convert",
    },
)
