"""The kinds of model input: each class describes one, from a labels file to a served model.

A class is known by its `kind` as soon as its module is imported, which happens here for ours.
"""

from kerasmtl.data.inputs.base import Fault, Input, Rows, Signature
from kerasmtl.data.inputs.image import Image
from kerasmtl.data.inputs.table import Table

__all__ = ["Fault", "Image", "Input", "Rows", "Signature", "Table"]
