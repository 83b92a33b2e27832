"""An export that does not answer as the model does is never published."""

import numpy as np
import pytest
import tensorflow as tf
from exports import TASKS, export_table, mixed_model

from kerasmtl.evaluation.calibration import Decision, decide
from kerasmtl.export import verify
from kerasmtl.export.signatures import answers, check_names
from kerasmtl.export.verify import VerificationError, is_clear, reference_answers
from kerasmtl.tasks import Task


def skewed(*arguments):
    found = reference_answers(*arguments)
    return {**found, "hours": found["hours"] + 0.01}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["other numbers", "torn file", "no end", "needs kerasmtl"])
def test_a_wrong_export_is_refused_and_nothing_is_left(tmp_path, monkeypatch, fault):
    message = "No version was published"
    if fault == "other numbers":
        monkeypatch.setattr(verify, "reference_answers", skewed)
        message = "'hours' differs from the model"
    elif fault == "torn file":
        from kerasmtl.export import saved_model

        write = saved_model.write_saved_model

        def torn(model, folder, endpoints):
            write(model, folder, endpoints)
            index = folder / "variables" / "variables.index"
            index.write_bytes(index.read_bytes()[:20])

        monkeypatch.setattr(saved_model, "write_saved_model", torn)
    elif fault == "needs kerasmtl":
        script = tmp_path / "script.py"
        script.write_text(
            verify.SCRIPT.read_text().replace("def main(", "import kerasmtl\n\n\ndef main(")
        )
        monkeypatch.setattr(verify, "SCRIPT", script)
        message = "kerasmtl"
    else:
        monkeypatch.setattr(verify, "TIMEOUT", 0.01)
        message = "within 0.01 seconds"
    (tmp_path / "pumps" / "1").mkdir(parents=True)
    with pytest.raises(VerificationError, match=message):
        export_table(mixed_model(), tmp_path / "pumps", verify=True)
    assert [path.name for path in (tmp_path / "pumps").iterdir()] == ["1"]


def test_examples_are_clear_of_thresholds():
    tasks = [Task("a"), TASKS[1]]
    decisions = {"a": Decision(0.5, 1.0), "kind": Decision(None, 1.0)}
    classes = np.array([[0.5, 0.3, 0.2]])
    assert is_clear({"a": np.array([0.6]), "kind": classes}, tasks, decisions)
    assert not is_clear({"a": np.array([0.5001]), "kind": classes}, tasks, decisions)
    tie = np.array([[0.4, 0.4, 0.2]])
    assert not is_clear({"a": np.array([0.6]), "kind": tie}, tasks, decisions)


def test_the_graph_and_the_reference_answer_alike():
    """Two implementations, TensorFlow's and NumPy's, of calibration and decisions."""
    model = mixed_model()
    decisions = {
        "wet | dry": Decision(0.3, 3.0),
        "kind": Decision(None, 0.4),
        "hours": Decision(),
    }
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype("float32") * 10
    wanted = reference_answers(model(rows), TASKS, decisions)
    got = answers(model(rows), TASKS, decisions)
    assert set(got) == set(wanted)
    for name, values in wanted.items():
        found = got[name].numpy()
        assert found.dtype == values.dtype and found.shape == values.shape
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("bias", [-0.7371, 0.0, 2.123])
def test_a_constant_model_decides_alike_everywhere(bias):
    task = Task("a")
    p = np.full((100, 1), 1 / (1 + np.exp(-bias)), "float32")
    y = (np.arange(100) % 3 == 0).astype("float32")
    decision = decide([task], {"a": (y, p[:, 0])}, None, calibrate=True)["a"]
    for nudge in (-1e-5, 0.0, 1e-5):
        found = answers(tf.constant(p + np.float32(nudge)), [task], {"a": decision})
        assert found["a_decision"].numpy().all()


def test_a_task_named_like_a_decision_is_refused():
    check_names([Task("a"), Task("b_decision"), Task("hours", "regression"), Task("c")])
    with pytest.raises(ValueError, match="`tasks`.*a_decision"):
        check_names([Task("a"), Task("a_decision")])
