"""Two replicas count the known labels of both, for every metric."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = """
import json, sys
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
import reference_scores as truth
from test_base import TABLE, binary, classes, numbers

found, expected = {}, {}
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
for data in (binary, classes, numbers):
    y, p = data(5, 48, 0.6)
    table = {name: row for name, row in TABLE.items() if row[2] is data}
    with strategy.scope():
        inputs = keras.Input(p.shape[1:])
        model = keras.Model(inputs, keras.layers.Activation("linear")(inputs))
        metrics = [make(name=name) for name, (make, _, _) in table.items()]
        model.compile(loss=lambda y, p: p[:, 0], metrics=metrics)
    found |= model.evaluate(p, y, batch_size=16, verbose=0, return_dict=True)
    expected |= {n: np.nanmean(truth.per_task(score, y, p)) for n, (_, score, _) in table.items()}
print(json.dumps([found, expected]))
"""


@pytest.mark.slow
def test_two_replicas_count_the_known_labels_of_both():
    # Virtual devices must be made before TensorFlow starts: hence a process of its own.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parent,  # where the table is
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, expected = json.loads(done.stdout.splitlines()[-1])
    assert len(expected) == 11
    for name, score in expected.items():
        np.testing.assert_allclose(found[name], score, rtol=1e-5, err_msg=name)
