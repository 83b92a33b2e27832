"""Each extra alone in a fresh environment, used once."""

import json
import re
import socket
import subprocess
import urllib.request

import pytest
from modules import shared

pytestmark = pytest.mark.wheel


def test_litert_converts_a_model_of_photographs(environment, photos):
    found = environment("litert").run(
        *("kerasmtl", "convert", "--to", "litert", "--json"), cwd=photos, quiet=False
    )
    assert json.loads(found)["check"]["rows"] > 10


def test_onnx_converts_a_model_of_photographs(environment, photos):
    found = environment("onnx").run(
        *("kerasmtl", "convert", "--to", "onnx", "--json"), cwd=photos, quiet=False
    )
    assert json.loads(found)["check"]["rows"] > 10


def test_serve_answers_its_client_as_predict_does(environment, photos, plain):
    image = shared("data", "street_photos", "images", "test_1.png")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = environment("serve")
    command = [serve.folder / "bin" / "kerasmtl", "serve", "--port", str(port)]
    with subprocess.Popen(command, cwd=photos, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()  # when it is ready
            assert "Serving photos" in line
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
                assert b"<title>photos" in page.read()
            url = f"http://127.0.0.1:{port}/v1/models/photos"
            (answer,) = json.loads(plain.run("kerasmtl", "client", url, image, "--json"))
        finally:
            server.terminate()
    (row,) = json.loads(plain.run("kerasmtl", "predict", image, "--json", cwd=photos))
    for name, value in row["probabilities"].items():
        assert answer["outputs"][name] == pytest.approx(value, abs=1e-5)
        assert answer["outputs"][f"{name}_decision"] == row["decisions"][name]


def test_parquet_is_written_and_read(environment, photos):
    image = shared("data", "street_photos", "images", "test_1.png")
    parquet = environment("parquet")
    parquet.run("kerasmtl", "predict", image, "--out", parquet.work / "p.parquet", cwd=photos)
    code = "import pandas as pd; print(pd.read_parquet('p.parquet').columns.tolist())"
    assert "vehicle_decision" in parquet.python(code)


def test_plot_draws_the_curve_of_learning_rates(environment):
    plot = environment()
    plot.python(
        "import kerasmtl as kt\nkt.quiet_tensorflow()\n"
        "from kerasmtl.models.hub.embedded import dataset_csv\n"
        "table = kt.Manifest.from_csv(dataset_csv('pump_faults'), input=kt.data.Table())\n"
        "model = kt.build_model(kt.backbones.mlp(table.values, [8]), table.tasks)\n"
        "model.compile('adam', loss=kt.losses.MaskedBinaryCrossentropy())\n"
        "data = kt.make_dataset(table, None, 64, training=True)\n"
        "kt.optimizers.find_learning_rate(model, data).plot('rates.png')\n"
    )
    assert (plot.work / "rates.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_tracker_gets_the_metrics_of_a_training(environment, name):
    tracker = environment(name)
    tracker.run("kerasmtl", "new", "multitask-tabular", "pumps", "--no-input")
    folder = tracker.work / "pumps"
    settings = (folder / "project.toml").read_text()
    settings = settings.replace('tracking = "none"', f'tracking = "{name}"')
    epochs = re.sub(r"epochs = \d+", "epochs = 2", settings)
    epochs = epochs.replace('hidden = "auto"', "hidden = [8]")
    for text in (epochs, settings):  # by epochs, and by folds, as it is by default
        (folder / "project.toml").write_text(text)
        # What MLflow itself says when it makes its database does not count.
        tracker.run("python", "train.py", cwd=folder, quiet=name != "mlflow")
    if name == "tensorboard":
        by_epochs, by_folds = sorted((folder / "runs").glob("[0-9]*"))
        assert list((by_epochs / "tensorboard" / "train").glob("events.out.*"))
        assert list((by_folds / "tensorboard" / "scores").glob("events.out.*"))
        return
    code = (
        "import mlflow\nclient = mlflow.MlflowClient('sqlite:///runs/mlflow.db')\n"
        "for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):\n"
        "    print(sorted(run.data.metrics))"
    )
    by_folds, by_epochs = tracker.run("python", "-c", code, cwd=folder, quiet=False).splitlines()
    assert "'val_auc'" in by_epochs and "'test_binary_auc'" in by_epochs
    assert "'folds_binary_auc'" in by_folds and "'test_binary_auc'" in by_folds


def test_keras_hub_gives_a_backbone(environment):
    code = (
        "import kerasmtl as kt, numpy as np, keras_hub\n"
        "made = keras_hub.models.ResNetBackbone(input_conv_filters=[64], "
        "input_conv_kernel_sizes=[3], stackwise_num_filters=[64], stackwise_num_blocks=[1], "
        "stackwise_num_strides=[1], block_type='basic_block')\n"
        "made.save_to_preset('preset')\n"
        "keras_hub.layers.ResNetImageConverter(image_size=(32, 32)).save_to_preset('preset')\n"
        "model = kt.build_model('keras_hub:preset', ['a', 'b'])\n"
        "print(model.predict(np.zeros((1, 32, 32, 3)), verbose=0).shape)\n"
    )
    said = environment("keras-hub").python(code, quiet=False)
    assert said.strip().endswith("(1, 2)")


def test_hf_finds_a_module_in_the_cache(environment):
    hf = environment("hf")
    source = shared("models", "saved_model_v2_mini")
    repo = hf.work / "hf" / "hub" / "models--owner--repo"
    commit = "0" * 40
    for path in source.rglob("*"):
        if path.is_file():
            target = repo / "snapshots" / commit / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    said = hf.run(
        *("kerasmtl", "inspect", "hf:owner/repo"),
        HF_HOME=str(hf.work / "hf"),
        HF_HUB_OFFLINE="1",
    )
    assert "float32" in said
