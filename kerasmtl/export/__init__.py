"""Trained models as SavedModels, LiteRT and ONNX files, each verified before it appears."""

from kerasmtl.utils.lazy import lazy_names

__all__ = ["ConvertedModel", "convert_model", "read_decisions", "read_description"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ConvertedModel": "kerasmtl.export.converted_model",
        "convert_model": "kerasmtl.export.convert",
        "read_decisions": "kerasmtl.export.description",
        "read_description": "kerasmtl.export.description",
    },
)
