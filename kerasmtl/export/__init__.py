"""Trained models as SavedModels, LiteRT and ONNX files, each verified before it appears.

`saved_model.export_saved_model` writes numbered versions for a server, `convert.convert_model`
single files for LiteRT and ONNX Runtime. Both name the outputs after the tasks (`signatures`),
describe themselves by `description`, and compare their answers with those of
`verify.reference_answers`, an implementation in NumPy, before anything is at its final path.
`serving` and the commands `kerasmtl export`, `convert` and `predict` build on this package; it
imports neither of them.
"""

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
