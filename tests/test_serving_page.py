"""The page: one file that is whole in itself, and what a browser makes of it."""

import base64
import contextlib
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import requests

import kerasmtl as kt

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from served import CLASSES, b64, mean_of, picture, predict, save_pictures, serving

from kerasmtl.serving.limits import Limits
from kerasmtl.serving.page import page
from kerasmtl.serving.served import Signature, Tensor

DATA = picture(3)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'"


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of each script and style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.inside = [], {"script": [], "style": []}
        self._open = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in self.inside:
            self._open = tag
            self.inside[tag].append("")

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.inside[self._open][-1] += data


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    base = tmp_path_factory.mktemp("street")
    save_pictures(base)
    with serving(base, max_pixels=10_000) as running:
        yield running


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    keras.utils.set_random_seed(0)
    base = tmp_path_factory.mktemp("table")
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="sigmoid")(inputs))
    kt.export_saved_model(model, base, ["ill", "well"], columns=["age", "weight"])
    with serving(base, "table") as running:
        yield running, model


def test_it_is_whole_in_itself_and_may_run_nothing_else(street):
    answer = requests.get(street.url, timeout=60)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    found = Parsed(answer.text)
    for tag, attributes in found.tags:
        links = [attributes[name] for name in ("src", "href", "action") if name in attributes]
        assert all(link.startswith("data:") for link in links), tag
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    _, script = found.inside["script"]
    for text in (script, *found.inside["style"]):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "innerHTML" not in script and "http" not in script


def test_it_can_be_used_without_seeing_it(street):
    found = Parsed(requests.get(street.url, timeout=60).text)
    assert ("html", {"lang": "en"}) in found.tags
    attributes = {tag[1]["id"]: tag[1] for tag in found.tags if "id" in tag[1]}
    assert attributes["message"]["role"] == "status"
    assert attributes["preview"]["alt"]
    assert {"title", "main", "h1", "caption", "label", "legend"} <= {tag for tag, _ in found.tags}
    assert sum(a.get("scope") == "col" for tag, a in found.tags if tag == "th") == 4


def test_names_from_outside_are_only_ever_text():
    tensors = {EVIL: Tensor(EVIL, "float32", (), "x")}
    signature = Signature("serving_default", tensors, tensors)
    served = SimpleNamespace(
        signatures={"serving_default": signature},
        tasks=[{"name": EVIL, "classes": [EVIL]}],
        description={},
        version=1,
    )
    found = Parsed(page(EVIL, served, Limits()))
    assert len(found.inside["script"]) == 2
    assert json.loads(found.inside["script"][0])["tasks"][0]["name"] == EVIL
    assert [a for tag, a in found.tags if tag == "img"] == [
        {"id": "preview", "alt": "The chosen picture", "hidden": None}
    ]


def test_what_its_script_sends_is_what_the_server_takes(street):
    found = Parsed(requests.get(street.url, timeout=60).text)
    model, script = json.loads(found.inside["script"][0]), found.inside["script"][1]
    assert "{signature_name: model.signature, instances: [await input()]}" in script
    assert "[model.inputs[0].name]: {b64: await base64(file)}" in script
    body = {
        "signature_name": model["signature"],
        "instances": [{model["inputs"][0]["name"]: b64(DATA)}],
    }
    one = predict(f"{street.url}/", body, model["url"]).json()["predictions"][0]
    assert set(one) == set(model["outputs"])
    assert {task["name"] for task in model["tasks"]} <= set(one)


@contextlib.contextmanager
def opened(url):
    """The page in Chromium; collects what its console complains of."""
    driver = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with driver.sync_playwright() as playwright:
        system = shutil.which("chromium") or shutil.which("google-chrome")
        try:
            browser = playwright.chromium.launch(executable_path=system)
        except driver.Error as error:
            pytest.skip(f"no Chromium runs here: {str(error).splitlines()[0]}")
        shown = browser.new_page()
        shown.complaints = []
        shown.on("console", lambda m: shown.complaints.append(m.text) if m.type == "error" else 0)
        shown.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.goto(url)
        yield shown
        browser.close()


def rows_of(shown):
    shown.wait_for_selector("#table:not([hidden])")
    return [
        [cell.inner_text() for cell in row.query_selector_all("th, td")]
        for row in shown.query_selector_all("#body tr")
    ]


def drop(shown, data):
    """Drop a file of these bytes on the page."""
    held = shown.evaluate_handle(
        """text => {
            const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
            const held = new DataTransfer();
            held.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
            return held;
        }""",
        base64.b64encode(data).decode(),
    )
    shown.dispatch_event("#drop", "dragover", {"dataTransfer": held})
    shown.dispatch_event("#drop", "drop", {"dataTransfer": held})


def test_a_picture_that_is_dropped_in_chromium(street):
    with opened(street.url) as shown:
        drop(shown, DATA)
        rows = rows_of(shown)
        mean = mean_of(DATA)
        yes = "yes" if mean >= 0.4 else "no"
        assert rows[0] == ["night", "", f"{mean:.3f}", f"{yes} (from 0.400)"]
        share = np.exp([mean, 1 - mean, 0])
        share /= share.sum()
        order = np.argsort(-share)
        assert [row[1] for row in rows[1:]] == [CLASSES[index] for index in order]
        np.testing.assert_allclose([float(row[2]) for row in rows[1:]], share[order], atol=2e-3)
        assert rows[1][0] == "sign" and rows[1][3] == CLASSES[order[0]]
        assert shown.is_visible("#preview") and shown.inner_text("#message") == "Done."
        assert shown.complaints == []


def test_a_chosen_file_that_is_bad_and_one_that_is_good(street):
    with opened(street.url) as shown:
        for name, data, message in (
            ("a.png", b"no picture", "not a picture"),
            ("b.png", picture(1, (101, 100)), "more than the 10000"),
        ):
            file = {"name": name, "mimeType": "image/png", "buffer": data}
            shown.set_input_files("#file", file)
            shown.wait_for_function(
                "text => document.getElementById('message').textContent.includes(text)", arg=message
            )
            assert shown.is_hidden("#table")
        shown.set_input_files("#file", {**file, "buffer": DATA})
        assert rows_of(shown)[0][0] == "night"


def test_a_row_of_a_table_in_chromium(table):
    running, model = table
    expected = model.predict(np.array([[40.5, 70]]), verbose=0)[0]
    with opened(running.url) as shown:
        assert shown.is_hidden("#drop")
        shown.get_by_label("age").fill("40,5")
        shown.get_by_label("weight").fill("7o")
        shown.get_by_role("button", name="Predict").click()
        shown.wait_for_selector("#message.wrong")
        assert 'weight: "7o" is no number' in shown.inner_text("#message")
        shown.get_by_label("weight").fill("70")
        shown.get_by_label("weight").press("Enter")
        rows = rows_of(shown)
        assert rows == [
            [name, "", f"{value:.3f}", f"{'yes' if value >= 0.5 else 'no'} (from 0.500)"]
            for name, value in zip(("ill", "well"), expected, strict=True)
        ]
        assert shown.complaints == []


def test_the_page_follows_the_model_s_name_and_version(street):
    text = requests.get(street.url, timeout=60).text
    assert "<h1>street</h1>" in text and "Version 1</p>" in text
    assert re.search(r"<title>street", text)
