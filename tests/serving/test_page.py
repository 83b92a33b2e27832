"""The page: one file that loads nothing from elsewhere, and what a browser shows of it."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import requests
from PIL import Image

import kerasmtl as kt

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from browser import chromium, complaints, screenshot, until, visit
from served import CLASSES, b64, described, held, mean_of, noise, predict, save_image_model, serving

from kerasmtl.serving.config import ServerConfig
from kerasmtl.serving.page import page
from kerasmtl.serving.served_model import Signature, Tensor

DATA = noise(3)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'"
IMAGES = {"image_bytes": Tensor("image_bytes", "string", (), "x")}


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
    """A model of images with a golden request, and a server that takes 100 kB at a time."""
    folder = save_image_model(tmp_path_factory.mktemp("street"))
    mean = float(mean_of(DATA))
    answer = {"night": mean, "night_decision": int(mean >= 0.4)}
    golden = folder / "assets.extra" / "golden"
    golden.mkdir()
    for file, content in (
        (folder / "assets.extra" / "model.json", described()),
        (golden / "rest_row.request.json", {"instances": [{"image_bytes": b64(DATA)}]}),
        (golden / "rest_row.response.json", {"predictions": [answer]}),
    ):
        file.write_text(json.dumps(content))
    with serving(folder.parent, max_body=101_000 / 2**20) as running:
        yield running


def model_of(tasks=(), tensors=IMAGES, description=None, folder=Path("nowhere")):
    """As much of a ServedModel as the page reads."""
    signature = Signature("serving_default", tensors, tensors)
    tasks = [{"kind": "binary", "classes": [], "threshold": None, **task} for task in tasks]
    return SimpleNamespace(
        signatures={"serving_default": signature},
        tasks=tasks,
        description=description or {},
        version=1,
        folder=folder,
    )


def content_of(model):
    """What the page's script is given."""
    return json.loads(Parsed(page("x", model, ServerConfig())).inside["script"][0])


def test_it_loads_nothing_and_runs_only_its_own_script(street):
    answer = requests.get(street.url, timeout=60)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<h1>street</h1>" in answer.text and "Version 1</p>" in answer.text
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
    assert {"title", "main", "h1", "h2", "caption", "label", "legend"} <= {
        tag for tag, _ in found.tags
    }
    assert sum(a.get("scope") == "col" for tag, a in found.tags if tag == "th") == 4


def test_names_from_outside_are_only_ever_text():
    tensors = {EVIL: Tensor(EVIL, "float32", (), "x")}
    task = {"name": EVIL, "classes": [EVIL], "threshold": 0.3}
    other = {"name": "b", "threshold": 0.5}
    found = Parsed(page(EVIL, model_of([task, other], tensors), ServerConfig()))
    assert len(found.inside["script"]) == 2
    assert json.loads(found.inside["script"][0])["tasks"][0]["name"] == EVIL
    assert len([tag for tag, _ in found.tags if tag == "img"]) == 1


def test_the_note_is_about_thresholds_if_there_are_any():
    for threshold, said in ((0.3, "from there on the answer is yes.</p>"), (None, "hidden></p>")):
        assert said in page("x", model_of([{"name": "a", "threshold": threshold}]), ServerConfig())


def test_the_form_follows_the_kind_of_input_or_the_signature():
    row = {"features": Tensor("features", "float32", (9,), "x")}
    text = {"words": Tensor("words", "string", (), "x")}
    columns = {name: Tensor(name, "float32", (), "x") for name in "ab"}
    forms = [content_of(model_of((), tensors))["form"] for tensors in (IMAGES, row, text, columns)]
    assert forms == ["files", "matrix", "columns", "columns"]
    assert content_of(model_of((), text))["inputs"] == [
        {"name": "words", "label": "words", "text": True}
    ]
    assert content_of(model_of((), IMAGES, {"input": {"kind": "text"}}))["form"] == "columns"
    assert content_of(model_of((), text, {"input": {"kind": "image"}}))["form"] == "files"


@pytest.mark.parametrize(
    "golden, offered",
    [
        ({"instances": [{"image_bytes": b64(DATA)}]}, 1),
        ({"instances": [b64(DATA)]}, 0),
        ({"inputs": [b64(DATA)]}, 0),
        ([], 0),
        ({"instances": [{"image_bytes": b64(bytes(300_000))}]}, 0),
        (None, 0),
    ],
)
def test_samples_are_offered_if_the_page_can_use_them(tmp_path, golden, offered):
    folder = tmp_path / "assets.extra" / "golden"
    folder.mkdir(parents=True)
    (folder / "rest_row.request.json").write_text("{" if golden is None else json.dumps(golden))
    assert len(content_of(model_of(folder=tmp_path))["samples"]) == offered


# ------------------------------------------------------------------ in Chromium

# What a visitor sees of each result, and how long its bars are, as shares.
READ = """
return [...document.querySelectorAll("#results li")].map(card => ({
  name: card.querySelector("h2")?.innerText,
  state: card.querySelector(".state")?.innerText,
  again: card.querySelector(".again")?.checkVisibility(),
  thumbnail: card.querySelector("img:not([hidden])")?.naturalWidth,
  heads: [...card.querySelectorAll("thead th")].map(cell => cell.innerText),
  rows: [...card.querySelectorAll("tbody tr")].map(row =>
    [...row.cells].map(cell => cell.innerText.trim())),
  bars: [...card.querySelectorAll(".bar")].map(bar => {
    const whole = bar.getBoundingClientRect(), mark = bar.querySelector("b");
    return [bar.firstChild.getBoundingClientRect().width / whole.width,
      mark && (mark.getBoundingClientRect().x + 1 - whole.x) / whole.width];
  }),
}));
"""
DROP = """
const held = new DataTransfer();
for (const [name, text] of arguments[0])
  held.items.add(new File([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))], name));
for (const kind of ["dragover", "drop"])
  document.getElementById("drop").dispatchEvent(
    new DragEvent(kind, {dataTransfer: held, bubbles: true, cancelable: true}));
"""
HEADS = ["Task", "Class", "Probability", "Decision"]


def at(shown, name):
    return shown.find_element("id", name)


def drop(shown, files):
    """Drop files, bytes by name, on the page."""
    coded = [[name, base64.b64encode(data).decode()] for name, data in files.items()]
    shown.execute_script(DROP, coded)


def results(shown, message):
    """The cards, once the page says so."""
    until(shown, lambda: message in at(shown, "message").text, f"never said: {message}")

    def drawn():
        found = shown.execute_script(READ)
        return found and all(card["thumbnail"] for card in found if card["name"] and card["rows"])

    if at(shown, "results").text:
        until(shown, drawn, "never drew the thumbnails")
    return shown.execute_script(READ)


def expected(data):
    """The rows for an image of the model of `save_image_model`, and the lengths of the bars."""
    mean = mean_of(data)
    why = f"yes ({mean:.3f} ≥ 0.400)" if mean >= 0.4 else f"no ({mean:.3f} < 0.400)"
    share = np.exp([mean, 1 - mean, 0])
    share /= share.sum()
    order = np.argsort(-share)
    classes = [[CLASSES[index], f"{share[index]:.3f}"] for index in order]
    decided = f"{CLASSES[order[0]]} (the likeliest)"
    rows = [["night", f"{mean:.3f}", why], ["sign", *classes[0], decided], *classes[1:]]
    return rows, [mean, *share[order]]


def dark_noise(seed):
    """Noise below the threshold of `night`."""
    pixels = np.random.default_rng(seed).integers(0, 120, (30, 50, 3), "uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.slow
def test_images_that_are_dropped(street, shown, tmp_path):
    files = {"one.png": DATA, "dark.png": dark_noise(1), "two.png": noise(4, (40, 33))}
    visit(shown, street.url)
    assert not at(shown, "note").is_displayed() and not at(shown, "clear").is_displayed()
    drop(shown, files)
    cards = results(shown, "Done: 3 images.")
    assert [card["name"] for card in cards] == [*files]
    assert [card["thumbnail"] for card in cards] == [40, 50, 33]
    for card, data in zip(cards, files.values(), strict=True):
        rows, lengths = expected(data)
        assert card["heads"] == HEADS and card["rows"] == rows and card["state"] == ""
        np.testing.assert_allclose([bar[0] for bar in card["bars"]], lengths, atol=0.01)
        assert card["bars"][0][1] == pytest.approx(0.4, abs=0.01)
        assert {bar[1] for bar in card["bars"][1:]} == {None}
    assert cards[1]["rows"][0][2].startswith("no (0.")
    assert at(shown, "note").text.endswith("from there on the answer is yes.")
    assert complaints(shown) == []
    asked = shown.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    own = (street.url, f"blob:{street.url}", "data:")
    assert asked and all(name.startswith(own) for name in asked)
    at(shown, "sample").click()  # above those that are there
    cards = results(shown, "Done: 4 images.")
    assert cards[0]["name"] == "Made-up sample 1" and cards[0]["rows"] == expected(DATA)[0]
    at(shown, "clear").click()
    until(shown, lambda: not shown.execute_script(READ), "was never cleared")

    # Invalid files between good ones.
    bad = {"broken.jpg": b"hello", "heavy.png": DATA + bytes(100_000), "none.png": b""}
    drop(shown, {"a.png": DATA, **bad, "z.png": DATA})
    cards = results(shown, "2 of 5 images done.")
    rows, _ = expected(DATA)
    assert [card["rows"] for card in cards] == [rows, [], [], [], rows]
    size = (len(DATA) + 100_000) / 1000
    heavy = f"Too large: {size:.1f} kB, and this server takes up to 75.0 kB."
    states = [card["state"] for card in cards]
    assert [states[0], states[2], states[4]] == ["", heavy, ""] and states[1] and states[3]
    said = at(shown, "message").text
    assert "broken.jpg: " in said and "heavy.png: too large" in said
    body = shown.find_element("tag name", "body").text
    assert not re.search("instances|b64|Expected|Received|[`{}]", body)
    screenshot(shown, "page-bad-files", tmp_path)


@pytest.mark.slow
def test_waiting_trying_again_and_the_keyboard(street, shown, monkeypatch, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    def states():
        return [card["state"] for card in shown.execute_script(READ)]

    def press(*keys):
        ActionChains(shown).send_keys(*keys).perform()
        return shown.switch_to.active_element

    visit(shown, street.url)
    with monkeypatch.context() as patch:  # a few requests at a time
        _, on = held(street, patch)
        drop(shown, {f"{number}.png": DATA for number in range(6)})
        until(shown, lambda: street.server.busy == 4, "never sent four requests")
        assert states() == ["Predicting …"] * 4 + ["Waiting …"] * 2
        on.set()
        results(shown, "Done: 6 images.")
    visit(shown, street.url)
    with monkeypatch.context() as patch:  # no fault of the image
        patch.setattr(street.versions.get(), "call", lambda *_: 1 / 0)
        drop(shown, {"a.png": DATA})
        (card,) = results(shown, "0 of 1 image done.")
        assert "The server failed" in card["state"] and card["again"]
    shown.find_element("class name", "again").click()
    (card,) = results(shown, "Done: 1 image.")
    assert card["rows"] == expected(DATA)[0] and not card["again"]

    visit(shown, street.url)
    field = press(Keys.TAB)
    assert field == at(shown, "file") and field.get_attribute("multiple")
    assert field.accessible_name.startswith("Drop images here, or choose images")
    (tmp_path / "a.png").write_bytes(DATA)
    field.send_keys(str(tmp_path / "a.png"))  # as the chooser would
    results(shown, "Done: 1 image.")
    assert press(Keys.TAB) == at(shown, "sample")
    assert press(Keys.TAB) == at(shown, "clear")
    assert press(Keys.ENTER) == at(shown, "file")
    assert shown.execute_script(READ) == [] and at(shown, "message").text == ""

    for width, scheme in ((None, "light"), (360, "dark")):  # in any window
        visit(shown, street.url, width, scheme)
        long = "a_rather_long_name_without_any_hyphen_in_it_as_phones_give_them_to_photos.png"
        drop(shown, {"broken.jpg": b"hello", long: dark_noise(2)})
        results(shown, "1 of 2 images done.")
        measured = "return [document.documentElement.scrollWidth, innerWidth]"
        assert shown.execute_script(measured) == [width or 1000] * 2
        screenshot(shown, f"page-{'narrow' if width else 'wide'}-{scheme}", tmp_path)


@pytest.mark.slow
def test_rows_of_tables(shown, tmp_path):
    from selenium.webdriver import Keys

    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="sigmoid")(inputs))
    columns = ["age", "weight"]
    kt.export_saved_model(
        model, tmp_path / "t", ["ill", "well"], input=kt.data.Table(columns), verify=False
    )
    values = model.predict(np.array([[40.5, 70]]), verbose=0)[0]
    with serving(tmp_path / "t", "table") as running:
        visit(shown, running.url)
        assert not at(shown, "drop").is_displayed()
        age, weight = shown.find_elements("css selector", "#columns input")
        assert (age.accessible_name, weight.accessible_name) == ("age", "weight")
        age.send_keys("40,5")
        weight.send_keys("7o")
        at(shown, "predict").click()
        said = 'Weight must be a number, got "7o".'
        assert results(shown, said) == [] and shown.switch_to.active_element == weight
        weight.send_keys(Keys.BACKSPACE, "0", Keys.ENTER)
        (card,) = results(shown, "Done.")
        assert card["heads"] == ["Task", "Probability", "Decision"]  # no column of classes
        assert [row[:2] for row in card["rows"]] == [
            [name, f"{p:.3f}"] for name, p in zip(("ill", "well"), values, strict=True)
        ]
        np.testing.assert_allclose(card["bars"], [[value, 0.5] for value in values], atol=0.01)
        at(shown, "sample").click()
        until(shown, lambda: age.get_attribute("value") != "40,5", "filled nothing in")
        results(shown, "Done.")
        assert complaints(shown) == []

    tasks = [
        kt.Task("price", "regression"),
        kt.Task("kind", "multiclass", classes=tuple("abcdefg")),
    ]
    model = kt.build_model(kt.backbones.mlp(101, [4]), tasks)
    columns = [f"c{i}" for i in range(101)]
    kt.export_saved_model(model, tmp_path / "h", tasks, input=kt.data.Table(columns), verify=False)
    with serving(tmp_path / "h", "houses") as running:
        visit(shown, running.url, 360, "dark")
        field = at(shown, "numbers")
        assert field.accessible_name.startswith("One row: 101 numbers")
        field.send_keys("1 x " + "0 " * 99)
        at(shown, "predict").click()
        results(shown, 'Number 2 must be a number, got "x".')
        at(shown, "sample").click()
        (card,) = results(shown, "Done.")
        given = [float(text) for text in field.get_attribute("value").split()]
        body = {"instances": [given]}
        answer = predict(running.url, body, "/v1/models/houses:predict").json()["predictions"][0]
        assert card["heads"] == ["Task", "Class", "Probability or number", "Decision"]
        assert float(card["rows"][0][1]) == pytest.approx(answer["price"], rel=1e-4)
        ranked = sorted(zip(answer["kind"], "abcdefg", strict=True), reverse=True)
        decided = f"{answer['kind_decision']} (the likeliest)"
        assert card["rows"][1] == ["kind", ranked[0][1], f"{ranked[0][0]:.3f}", decided]
        assert len(card["rows"]) == 1 + 5 and len(card["bars"]) == 5  # a number has no bar
        shown.find_element("class name", "all").click()
        (card,) = shown.execute_script(READ)
        shown_classes = [row[-2:] for row in card["rows"][2:]]
        assert shown_classes == [[name, f"{p:.3f}"] for p, name in ranked[1:]]
        assert shown.execute_script("return document.documentElement.scrollWidth") == 360
        assert complaints(shown) == []
