"""Run in a process of its own by `proof.py`: FOLDER CASES. TensorFlow only; prints the fault."""

from __future__ import annotations

import base64
import gc
import json
import os
import sys

import numpy as np
import tensorflow as tf

FORBIDDEN = ("kerasmtl", "keras", "tf_keras")
TOLERANCE = 1e-5


# An export must not need what wrote it; a name that stands for None cannot be imported.
sys.modules.update(dict.fromkeys(FORBIDDEN))
gc.disable()  # a short process; TensorFlow's import alone takes a fifth longer with it


class Fault(Exception):
    """Why the export is not to be published."""


def main(folder, cases):
    loaded = tf.saved_model.load(folder)
    served = loaded.signatures
    with open(cases, encoding="utf-8") as file:
        for case in json.load(file):
            inputs, outputs = unpacked(case["inputs"]), unpacked(case["outputs"])
            replay(served, case["signature"], case["signature"], inputs, outputs)
    golden = os.path.join(folder, "assets.extra", "golden")
    for kind, (read, answers) in KINDS.items():
        request, response = (
            json.load(open(os.path.join(golden, f"{kind}.{end}.json"), encoding="utf-8"))
            for end in ("request", "response")
        )
        name = request.get("signature_name", "serving_default")
        replay(served, f"golden {kind}", name, read(request), answers(response, served[name]))
    needed = [name for name in sys.modules if name.split(".")[0] in FORBIDDEN]
    if len(needed) > len(FORBIDDEN):
        raise Fault(f"it needs {sorted(needed)[:5]}")


def replay(served, what, signature, inputs, expected):
    if signature not in served:
        raise Fault(f"it has no signature {signature!r}")
    specs = served[signature].structured_input_signature[1]
    if set(inputs) != set(specs):
        raise Fault(f"{what} takes {sorted(specs)[:10]}, not {sorted(inputs)[:10]}")
    tensors = {key: tf.constant(value, specs[key].dtype) for key, value in inputs.items()}
    received = served[signature](**tensors)
    if set(received) != set(expected):
        raise Fault(f"{what} gives {sorted(received)}, not {sorted(expected)}")
    for key, wanted in expected.items():
        compare(f"{what}, {key!r}", received[key].numpy(), np.asarray(wanted))


def compare(what, received, wanted):
    if received.shape != wanted.shape:
        raise Fault(f"{what} has shape {received.shape}, not {wanted.shape}")
    if received.dtype == object:
        same = received.tolist() == [text(value) for value in wanted.tolist()]
    elif received.dtype.kind == "f":
        same = np.allclose(received, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    else:
        same = np.array_equal(received, wanted)
    if not same:
        shown = f"{received.ravel()[:6].tolist()}, and of the model {wanted.ravel()[:6].tolist()}"
        raise Fault(f"{what} differs from the model: {shown}")


def text(value):
    return value.encode() if isinstance(value, str) else value


def unpacked(tensors):
    return {
        key: tf.io.parse_tensor(base64.b64decode(content), dtype).numpy()
        for key, (dtype, content) in tensors.items()
    }


def rest(value):
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value


def rows(request):
    instances = request["instances"]
    return {key: [rest(row[key]) for row in instances] for key in instances[0]}


def columns(request):
    return {key: [rest(value) for value in values] for key, values in request["inputs"].items()}


def infer(request):
    found = {}
    for tensor in request["inputs"]:
        data = tensor["data"]
        if tensor["datatype"] == "BYTES":
            data = [base64.b64decode(value) for value in data]
        found[tensor["name"]] = np.array(data, object if tensor["datatype"] == "BYTES" else None)
        found[tensor["name"]] = found[tensor["name"]].reshape(tensor["shape"])
    return found


def of_rows(response, signature):
    (*names,) = signature.structured_outputs
    predictions = response["predictions"]
    if len(names) == 1:
        return {names[0]: predictions}
    return {key: [row[key] for row in predictions] for key in predictions[0]}


def of_columns(response, signature):
    (*names,) = signature.structured_outputs
    return {names[0]: response["outputs"]} if len(names) == 1 else response["outputs"]


def of_tensors(response, signature):
    return {
        tensor["name"]: np.array(tensor["data"]).reshape(tensor["shape"])
        for tensor in response["outputs"]
    }


KINDS = {
    "rest_row": (rows, of_rows),
    "rest_column": (columns, of_columns),
    "kserve_v2": (infer, of_tensors),
}

if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Fault as fault:
        raise SystemExit(f"Fault: {fault}") from None
