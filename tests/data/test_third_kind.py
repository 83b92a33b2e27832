"""A third kind of input, defined here alone, from a labels file to predictions of an export."""

from dataclasses import dataclass, replace
from typing import ClassVar

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import kerasmtl as kt
from kerasmtl.data.inputs import Rows
from kerasmtl.serving.batch_predict import open_source, predict_to_file
from kerasmtl.serving.predictor import export_predictor, model_predictor

WORDS = ("cat", "dog", "red", "blue")


@dataclass(frozen=True)
class Words(kt.data.Input):
    """Texts: model input is how often each word of a vocabulary occurs, (batch, words) float32."""

    kind: ClassVar[str] = "words"
    noun: ClassVar[str] = "texts"
    column: str = "text"
    vocabulary: tuple[str, ...] = ()

    def claimed(self):
        return {"column": (self.column,)}

    def read(self, file, taken):
        return Rows(*self.adopt(file.cells[self.column].to_numpy()))

    def adopt(self, values):
        return replace(self, vocabulary=WORDS), np.asarray(values, dtype=object)

    @property
    def spec(self):
        return tf.TensorSpec((None, len(self.vocabulary)), tf.float32)

    def prepare(self, raw):
        words = tf.strings.split(tf.strings.lower(raw))[..., None] == list(self.vocabulary)
        return tf.reduce_sum(tf.cast(words, tf.float32), axis=1)

    def signatures(self):
        def sample(seed):
            drawn = np.random.default_rng(seed).choice(WORDS, 3)
            return {"text": np.array([f"a {word}".encode() for word in drawn], dtype=object)}

        spec = {"text": tf.TensorSpec((None,), tf.string, name="text")}
        ask = lambda raw: self.prepare(raw["text"])  # noqa: E731
        return [kt.data.Signature("serving_default", spec, ask, sample)]


@pytest.mark.slow  # the export is verified in a process of its own
def test_a_kind_goes_from_a_labels_file_to_served_predictions(tmp_path):
    texts = [f"{t} {n // 8}" for n, t in enumerate(["a red cat", "blue dog", "A Cat", "dogs"] * 8)]
    cells = {"text": texts, "cat": ["cat" in text.lower() for text in texts]}
    frame = pd.DataFrame(cells | {"odd": ["?" if n % 3 else n % 2 for n in range(32)]})
    frame.astype({"cat": int}).to_csv(tmp_path / "labels.csv", index=False)
    manifest = kt.Manifest.from_csv(tmp_path / "labels.csv", ["cat", "odd"], Words())
    train, _, test = manifest.split((0.5, 0.25, 0.25))
    assert not {*train.values} & {*test.values}  # identical texts stay together
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((len(WORDS),)), keras.layers.Dense(2, "sigmoid")])
    model.compile(keras.optimizers.Adam(0.1), loss=kt.losses.MaskedBinaryCrossentropy())
    model.fit(kt.make_dataset(manifest, batch_size=8, training=True), epochs=30, verbose=0)
    assert kt.evaluate(model, kt.make_dataset(manifest), manifest.tasks).tasks["cat"].auc == 1.0
    folder = kt.export_saved_model(model, tmp_path / "served", manifest.tasks, manifest.input)
    raw = np.array(["my cat", "a dog"], dtype=object)
    model.save(tmp_path / "model.keras")
    live = model_predictor(model, manifest.tasks, tmp_path / "model.keras", manifest.input)
    served = export_predictor(folder)
    assert served.input == manifest.input
    np.testing.assert_allclose(served.call(raw)["cat"], live.call(raw)["cat"], atol=1e-5)
    pd.DataFrame({"text": raw}).to_csv(tmp_path / "new.csv")
    source = open_source([str(tmp_path / "new.csv")], served.input)
    done = predict_to_file(served, source, tmp_path / "out.csv")
    assert pd.read_csv(done.out)["cat_decision"].tolist() == [1, 0]
