"""Compares an export with a file of cases: run by `verify.py` in a process with TensorFlow alone.

Usage: python -c "$(cat verify_process.py)" FOLDER CASES. Prints "Fault: …" and exits with 1 where
the export answers differently.

It must stay independent of the package: it is passed to Python as text, and makes every import of
kerasmtl and Keras fail before TensorFlow is imported, which would otherwise load Keras.
"""

import gc
import pickle
import sys

FORBIDDEN = ("kerasmtl", "keras", "tf_keras")
TOLERANCE = 1e-5

# An export must not need what wrote it: a module that is None cannot be imported. This comes before
# TensorFlow's import, which imports Keras where it can.
sys.modules.update(dict.fromkeys(FORBIDDEN))
gc.disable()  # a short process, whose imports take a fifth longer with it

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402


class Fault(Exception):
    """Why the export must not be published."""


def main(folder, cases):
    """Ask the export all requests of a file of cases: signature, inputs and outputs by name.

    Args:
        folder: the export.
        cases: a pickle of (signature, inputs, outputs), which `verify.verify` has just written.
    """
    loaded = tf.saved_model.load(folder)
    with open(cases, "rb") as file:
        for name, inputs, expected in pickle.load(file):
            if name not in loaded.signatures:
                raise Fault(f"it has no signature {name!r}")
            compare(loaded.signatures[name], name, inputs, expected)
    # The three names that are None are there in any case; a submodule means that something was
    # loaded.
    needed = [name for name in sys.modules if name.split(".")[0] in FORBIDDEN]
    if len(needed) > len(FORBIDDEN):
        raise Fault(f"it needs {sorted(needed)[:5]}")


def compare(serve, name, inputs, expected):
    """Raise Fault unless a signature takes these inputs and answers as expected, to 1e-5.

    Args:
        serve: the signature's function.
        name: of the signature.
        inputs: arrays by argument.
        expected: arrays by output; floats to 1e-5, absolute and relative, all others exactly.
    """
    specs = serve.structured_input_signature[1]
    if set(inputs) != set(specs):
        raise Fault(f"{name} takes {sorted(specs)[:10]}, not {sorted(inputs)[:10]}")
    # Arrays of byte strings have no type of their own in NumPy.
    lists = {key: v.tolist() if v.dtype == object else v for key, v in inputs.items()}
    received = serve(**{key: tf.constant(values) for key, values in lists.items()})
    if set(received) != set(expected):
        raise Fault(f"{name} gives {sorted(received)}, not {sorted(expected)}")
    for key, wanted in expected.items():
        got = received[key].numpy()
        same = got.shape == wanted.shape and got.dtype == wanted.dtype
        if same and got.dtype.kind == "f":
            same = np.allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        elif same:
            same = np.array_equal(got, wanted)
        if not same:
            shown = f"{got.ravel()[:6].tolist()}, and from the model {wanted.ravel()[:6].tolist()}"
            raise Fault(f"{name}, {key!r} differs from the model: {shown}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Fault as fault:
        raise SystemExit(f"Fault: {fault}") from None
