"""`kerasmtl client`: two protocols, against recorded answers and against `kerasmtl serve`."""

import contextlib
import http.server
import json
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from served import CLASSES, b64, mean_of, noise, save_image_model

from kerasmtl.cli.serve import client
from kerasmtl.serving.client import model_url, predict, protocol_of

IMAGES = [noise(1), noise(2), noise(3, (1, 1))]
# What TensorFlow Serving 2.x and KServe's MLServer answer, shortened.
ROWS = [
    {"night": 0.25, "night_decision": 0, "sign": [0.1, 0.8, 0.1], "sign_decision": "stop"},
    {"night": 0.75, "night_decision": 1, "sign": [0.6, 0.3, 0.1], "sign_decision": "none"},
]
OUTPUTS = [
    {"name": "night", "shape": [2], "datatype": "FP32", "data": [0.25, 0.75]},
    {"name": "night_decision", "shape": [2], "datatype": "INT32", "data": [0, 1]},
    {"name": "sign", "shape": [2, 3], "datatype": "FP32", "data": [0.1, 0.8, 0.1, 0.6, 0.3, 0.1]},
    {"name": "sign_decision", "shape": [2], "datatype": "BYTES", "data": ["stop", "none"]},
]


@contextlib.contextmanager
def answering(*answers):
    """Answer each request with the next of (status, headers, body), the last for ever after."""
    seen, left = [], list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            seen.append((self.command, self.path, body))
            status, headers, body = left.pop(0) if len(left) > 1 else left[0]
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield SimpleNamespace(url=f"http://127.0.0.1:{running.server_port}", seen=seen)
        finally:  # or the thread polls a closed socket without a pause
            running.shutdown()
            thread.join()


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, data in zip(paths, IMAGES, strict=False):
        path.write_bytes(data)
    return [str(path) for path in paths]


def run(*words):
    return CliRunner().invoke(client, [str(word) for word in words], env={"COLUMNS": "120"})


# ---------------------------------------------------------------- the two protocols


def test_tensorflow_serving_is_asked_in_rows(files):
    with answering((200, {}, {"predictions": ROWS})) as server:
        url = f"{server.url}/v1/models/street/labels/stable"
        assert predict(url, [IMAGES[0], files[1]], signature="extra") == ROWS
    ((method, path, body),) = server.seen
    assert (method, path) == ("POST", "/v1/models/street/labels/stable:predict")
    assert body == {
        "signature_name": "extra",
        "instances": [{"image_bytes": b64(data)} for data in IMAGES[:2]],
    }


def test_kserve_is_asked_in_base64_and_its_flat_data_become_rows(files):
    with answering((200, {}, {"model_name": "street", "outputs": OUTPUTS})) as server:
        assert predict(f"{server.url}/v2/models/street/versions/3", files) == ROWS
    ((_, path, body),) = server.seen
    assert path == "/v2/models/street/versions/3/infer"
    assert body == {
        "inputs": [
            {
                "name": "image_bytes",
                "shape": [2],
                "datatype": "BYTES",
                "parameters": {"content_type": "base64"},
                "data": [b64(data)["b64"] for data in IMAGES[:2]],
            }
        ]
    }


def test_an_output_that_is_alone_gets_its_name_from_the_metadata():
    signature = {"features": {"outputs": {"features": {}}}}
    metadata = {"metadata": {"signature_def": {"signature_def": signature}}}
    with answering((200, {}, {"predictions": [[1.0, 2.0]]}), (200, {}, metadata)) as server:
        url = model_url(server.url, name="street")
        found = predict(url, IMAGES[:1], signature="features")
    assert found == [{"features": [1.0, 2.0]}]
    assert server.seen[1][:2] == ("GET", "/v1/models/street/metadata")


def test_many_images_go_in_several_requests():
    answers = [(200, {}, {"predictions": ROWS}), (200, {}, {"predictions": ROWS[:1]})]
    with answering(*answers) as server:
        url = model_url(server.url, name="street")
        assert len(predict(url, IMAGES, batch_size=2)) == 3
    assert [len(body["instances"]) for _, _, body in server.seen] == [2, 1]


# ---------------------------------------------------------------- what goes wrong


def test_a_busy_server_is_asked_again_and_not_for_ever():
    busy = (503, {"Retry-After": "0"}, {"error": "busy"})
    with answering(busy, busy, (200, {}, {"predictions": ROWS[:1]})) as server:
        url = model_url(server.url, name="street")
        assert predict(url, IMAGES[:1]) == ROWS[:1]
    assert len(server.seen) == 3
    with answering(busy) as server:
        url = model_url(server.url, "kserve", "street")
        with pytest.raises(ConnectionError, match="answered 503: busy"):
            predict(url, IMAGES[:1], retries=2)
    assert len(server.seen) == 3


def test_what_the_server_says_is_shown():
    refusal = (400, {}, {"error": "`instances`[1]: not an image"})
    with answering((200, {}, {"predictions": ROWS}), refusal) as server:
        url = model_url(server.url, name="street")
        with pytest.raises(ValueError, match=r"answered 400: .*\[1\]: not.*examples 3 to 3\)"):
            predict(url, IMAGES, batch_size=2)
    with answering((404, {}, b"<h1>nothing here</h1>")) as server:
        result = run(server.url, __file__, "--name", "street")
    assert result.exit_code == 1 and "answered 404: <h1>nothing here" in result.output


@pytest.mark.parametrize(
    "body", [b"<html>", [1], {"predictions": [1, 2, 3]}, {"outputs": []}, {"predictions": None}]
)
def test_answers_of_another_form_are_refused(body):
    with answering((200, {}, body)) as server, pytest.raises(ValueError, match="`url` http"):
        predict(model_url(server.url, name="street"), IMAGES[:1])


@pytest.mark.parametrize(
    "outputs", [None, [{"name": "a"}], [{**OUTPUTS[0], "shape": [3]}], [{**OUTPUTS[0], "data": 1}]]
)
def test_tensors_that_do_not_fit_are_refused(outputs):
    with answering((200, {}, {"outputs": outputs})) as server:
        with pytest.raises(ValueError, match="`url` .* must give outputs for 1 examples"):
            predict(model_url(server.url, "kserve", "street"), IMAGES[:1])


def test_no_server_and_no_answer_are_named(files):
    with answering((200, {}, {})) as server:
        gone = server.url
    result = run(gone, files[0], "--name", "street")
    assert result.exit_code == 1 and "cannot be reached" in result.output
    assert "refused" in result.output and "Traceback" not in result.output
    stop = threading.Event()

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            stop.wait(60)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}/v1/models/street"
        with pytest.raises(TimeoutError, match="no answer within 0.2 seconds"):
            predict(url, IMAGES[:1], timeout=0.2)
        stop.set()
        running.shutdown()
        thread.join()


def test_a_server_that_dies_in_mid_answer_is_no_wrong_url():
    with answering((200, {"Content-Length": "999", "Connection": "close"}, {})) as server:
        with pytest.raises(ConnectionError, match="broke off in the middle of its answer"):
            predict(model_url(server.url, name="street"), IMAGES[:1])


def test_an_absent_image_is_named_before_anything_is_sent(tmp_path):
    with answering((200, {}, {})) as server:
        result = run(server.url, tmp_path / "no.png", "--name", "street")
    assert result.exit_code == 1 and "no.png" in result.output and not server.seen


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    "given, expected",
    [
        (("http://h:1", "tfserving", "m"), "http://h:1/v1/models/m"),
        (("http://h:1/proxy/", "kserve", "m", "7"), "http://h:1/proxy/v2/models/m/versions/7"),
        (("http://h/v1/models/m:predict",), "http://h/v1/models/m"),
        (("http://h/v1/models/m", "tfserving", None, "blue"), "http://h/v1/models/m/labels/blue"),
        (("http://h/v2/models/m/versions/3/infer", "kserve"), "http://h/v2/models/m/versions/3"),
        (("http://h/v1/models/m/versions/3", "tfserving", "n", "4"), "http://h/v1/models/n/versions/4"),
    ],
)  # fmt: skip
def test_the_url_of_a_model(given, expected):
    assert model_url(*given) == expected
    assert protocol_of(expected) == ("kserve" if "/v2/" in expected else "tfserving")


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        (("h:8501", "tfserving", "m"), "url"),
        (("http://h:8501",), "name"),
        (("http://h/v2/models/m", "tfserving"), "url"),
        (("http://h/v2/models/m", "kserve", None, "blue"), "version"),
    ],
)
def test_wrong_urls_are_refused(given, argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be"):
        model_url(*given)


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("protocol", ["tfserving", "kserve"])
def test_the_table_has_images_tasks_and_decisions(files, protocol):
    body = {"predictions": ROWS} if protocol == "tfserving" else {"outputs": OUTPUTS}
    with answering((200, {}, body)) as server:
        table = run(server.url, *files, "--name", "street", "--protocol", protocol)
        data = run(server.url, *files, "--name", "street", "--protocol", protocol, "--json")
    assert table.exit_code == 0, table.output
    for text in ("image", "night", "sign", "0.250 no", "0.750 yes", "stop (0.800)"):
        assert text in table.output
    assert "night_decision" not in table.output
    assert json.loads(data.output) == [
        {"image": file, "outputs": row} for file, row in zip(files, ROWS, strict=True)
    ]


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """The server of `kerasmtl serve`, in this process."""
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
    from served import serving

    base = tmp_path_factory.mktemp("street")
    save_image_model(base, 1)
    save_image_model(base, 3, shift=0.25)
    with serving(base) as running:
        yield running.url


def test_both_protocols_agree_on_kerasmtl_serve(street, files):
    row = predict(model_url(street, name="street", version="1"), IMAGES)
    tensor = predict(model_url(street, "kserve", "street", "1"), IMAGES, batch_size=2)
    means = [mean_of(data) for data in IMAGES]
    for found in (row, tensor):
        np.testing.assert_allclose([one["night"] for one in found], means, atol=1e-5)
        assert [one["sign_decision"] for one in found] == [
            CLASSES[int(np.argmax(one["sign"]))] for one in found
        ]
    newest = run(f"{street}/v2/models/street", *files, "--json")
    values = [one["outputs"]["night"] for one in json.loads(newest.output)]
    np.testing.assert_allclose(values, np.array(means[:2]) + 0.25, atol=1e-5)


def test_kerasmtl_serve_s_refusals_are_shown(street, tmp_path, files):
    (tmp_path / "bad.png").write_bytes(b"none")
    for protocol in ("tfserving", "kserve"):
        words = ("--name", "street", "--protocol", protocol)
        result = run(street, files[0], tmp_path / "bad.png", *words)
        assert result.exit_code == 1 and "[1]: " in result.output and "bad.png" in result.output
        result = run(street, files[0], *words, "--signature", "nothing")
        assert result.exit_code == 1 and "signature" in result.output


# ---------------------------------------------------------------- rows of tables


def metadata_of(*inputs, kind="DT_FLOAT", sizes=("-1",)):
    shape = {"dim": [{"size": size, "name": ""} for size in sizes]}
    tensors = {name: {"dtype": kind, "tensor_shape": shape} for name in inputs}
    signatures = {"serving_default": {"inputs": tensors, "outputs": {}}}
    return {"metadata": {"signature_def": {"signature_def": signatures}}}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,body weight,1st,ill\na,70.5,1,0\nb,NA,2,?\n\nc,0.1,,1\n")
    return path


def test_the_columns_of_a_csv_become_inputs_and_missing_cells_nan(table):
    rows = (200, {}, {"predictions": [{"ill": 0.25}, {"ill": 0.5}, {"ill": 0.75}]})
    metadata = (200, {}, metadata_of("body_weight", "column_1st"))
    with answering(metadata, rows) as server:
        result = run(f"{server.url}/v1/models/pumps/labels/blue", table, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)[1] == {"row": f"{table}:3", "outputs": {"ill": 0.5}}
    assert [path for _, path, _ in server.seen] == [
        "/v1/models/pumps/labels/blue/metadata",
        "/v1/models/pumps/labels/blue:predict",
    ]
    weights, firsts = zip(*(one.values() for one in server.seen[1][2]["instances"]), strict=True)
    np.testing.assert_allclose(weights, [70.5, np.nan, 0.1], rtol=1e-6)
    np.testing.assert_allclose(firsts, [1, 2, np.nan])


def test_rows_over_kserve_are_a_tensor_by_column(table):
    inputs = [{"name": n, "datatype": "FP32", "shape": [-1]} for n in ("body_weight", "column_1st")]
    night = {"outputs": [{**OUTPUTS[0], "shape": [3], "data": [1, 2, 3]}]}
    with answering((200, {}, {"inputs": inputs}), (200, {}, night)) as server:
        assert run(f"{server.url}/v2/models/pumps", table).exit_code == 0
    (_, path, _), (_, _, body) = server.seen
    assert path == "/v2/models/pumps"
    assert [(t["name"], t["shape"], t["datatype"]) for t in body["inputs"]] == [
        ("body_weight", [3], "FP32"),
        ("column_1st", [3], "FP32"),
    ]


def test_a_matrix_takes_a_file_of_its_columns_alone(tmp_path, table):
    alone = tmp_path / "alone.csv"
    alone.write_text("a,b\n1,2\n,4\n")
    metadata = (200, {}, metadata_of("features", sizes=("-1", "2")))
    with answering(metadata, (200, {}, {"predictions": ROWS})) as server:
        assert run(server.url, alone, "--name", "m").exit_code == 0
        rows = [one["features"] for one in server.seen[1][2]["instances"]]
        np.testing.assert_array_equal(rows, [[1, 2], [np.nan, 4]])
    with answering(metadata) as server:
        result = run(server.url, table, "--name", "m")
    assert "exactly the 2 columns" in result.output and "got 4 columns" in result.output


@pytest.mark.parametrize(
    "metadata, text, message",
    [
        (metadata_of("age", "speed"), "age\n1\n", "must have the columns speed"),
        (metadata_of("a_b"), "a b,a-b\n1,2\n", "must have one column per input"),
        (metadata_of("a"), "a\ntall\n", "finite numbers.*line 2, column 'a': 'tall'"),
        (metadata_of("image_bytes", kind="DT_STRING"), "a\n1\n", "takes no rows of numbers"),
        ({"metadata": {}}, "a\n1\n", "must give metadata"),
        (
            {"metadata": {"signature_def": {"signature_def": {}}}},
            "a\n1\n",
            "--signature must be one of",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, metadata, text, message):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with answering((200, {}, metadata)) as server:
        result = run(server.url, path, "--name", "m")
    assert result.exit_code == 1 and len(server.seen) == 1
    assert re.search(message, result.output)


def test_mixed_files_and_folders_are_refused_before_anything_is_sent(tmp_path, table, files):
    with answering((200, {}, {})) as server:
        mixed = run(server.url, table, files[0], "--name", "m")
        folder = run(server.url, tmp_path, "--name", "m")
        named = run(f"{server.url}/v2/models/m", table, "--signature", "matrix")
    assert "must be all tables or all images" in mixed.output
    assert "got the folder" in folder.output and "--signature with rows" in named.output
    assert server.seen == []


def test_the_server_s_numbers_become_files(files):
    refusal = (400, {}, {"error": "`instances`[1]: truncated"})
    with answering((200, {}, {"predictions": ROWS}), refusal) as server:
        result = run(server.url, *files, *files, "--name", "street", "--batch-size", 2)
    assert f"examples 3 to 4; [1] is {files[1]})" in result.output
    assert model_url("http://h", name="a b/c") == "http://h/v1/models/a%20b%2Fc"


def test_a_table_over_both_protocols_equals_the_model(tmp_path):
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
    import keras
    from served import serving

    import kerasmtl as kt

    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    known = keras.layers.Lambda(lambda x: keras.ops.where(keras.ops.isnan(x), 0.5, x))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="sigmoid")(known))
    kt.export_saved_model(
        model,
        tmp_path / "t",
        ["ill", "well"],
        input=kt.data.Table(["body weight", "1st"]),
        verify=False,
    )
    path = tmp_path / "rows.csv"
    path.write_text("1st,ill,body weight\n2,0,1\n,1,3\n")
    expected = model.predict(np.array([[1, 2], [3, np.nan]]), verbose=0)
    with serving(tmp_path / "t", "t") as running:
        for version in ("v1", "v2"):
            result = run(f"{running.url}/{version}/models/t", path, "--json")
            found = [
                [row["outputs"][n] for n in ("ill", "well")] for row in json.loads(result.output)
            ]
            np.testing.assert_allclose(found, expected, atol=1e-5)
