"""The page: one file that is whole in itself, and what a browser makes of it."""

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
from served import CLASSES, b64, described, held, mean_of, picture, predict, save_pictures, serving

from kerasmtl.serving.config import Limits
from kerasmtl.serving.page import page
from kerasmtl.serving.served_model import Signature, Tensor

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
    with serving(base, max_pixels=20_000, max_body=101_000) as running:
        yield running


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A model of images with a golden request, whose tasks have thresholds of three origins."""
    folder = save_pictures(tmp_path_factory.mktemp("sampled"))
    about = described()
    about["tasks"][0]["decision"] = {"rule": "precision>=0.9"}
    mean = float(mean_of(DATA))
    share = np.exp([mean, 1 - mean, 0]) / np.exp([mean, 1 - mean, 0]).sum()
    answer = {"night": mean, "night_decision": 1, "sign": share.tolist()}
    golden = folder / "assets.extra" / "golden"
    golden.mkdir()
    for file, content in (
        (folder / "assets.extra" / "model.json", about),
        (golden / "rest_row.request.json", {"instances": [{"image_bytes": b64(DATA)}]}),
        (golden / "rest_row.response.json", {"predictions": [answer]}),
    ):
        file.write_text(json.dumps(content))
    with serving(folder.parent) as running:
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


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    """A row of 101 numbers in, a number and one of seven classes out."""
    keras.utils.set_random_seed(0)
    base = tmp_path_factory.mktemp("houses")
    tasks = [
        kt.Task("price", "regression"),
        kt.Task("kind", "multiclass", classes=tuple("abcdefg")),
    ]
    model = kt.build_model(kt.backbones.mlp(101, [4]), tasks)
    kt.export_saved_model(model, base, tasks, columns=[f"c{i}" for i in range(101)])
    with serving(base, "houses") as running:
        yield running


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


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
    assert {"title", "main", "h1", "h2", "caption", "label", "legend"} <= {
        tag for tag, _ in found.tags
    }
    assert sum(a.get("scope") == "col" for tag, a in found.tags if tag == "th") == 4


def test_names_from_outside_are_only_ever_text():
    tensors = {EVIL: Tensor(EVIL, "float32", (), "x")}
    signature = Signature("serving_default", tensors, tensors)
    served = SimpleNamespace(
        signatures={"serving_default": signature},
        tasks=[
            {"name": EVIL, "kind": "binary", "classes": [EVIL], "threshold": 0.3, "rule": "f1"},
            {"name": "b", "kind": "binary", "classes": [], "threshold": 0.5, "rule": "fixed"},
        ],
        description={},
        version=1,
        folder=Path("nowhere"),
    )
    found = Parsed(page(EVIL, served, Limits()))
    assert len(found.inside["script"]) == 2
    assert json.loads(found.inside["script"][0])["tasks"][0]["name"] == EVIL
    assert [a for tag, a in found.tags if tag == "img"] == [
        {"class": "thumbnail", "alt": "", "decoding": "async", "hidden": None}
    ]


def test_what_its_script_sends_is_what_the_server_takes(street):
    found = Parsed(requests.get(street.url, timeout=60).text)
    model, script = json.loads(found.inside["script"][0]), found.inside["script"][1]
    assert "{signature_name: model.signature, instances: [instance]}" in script
    assert "{[model.inputs[0].name]: {b64: await base64(job.file)}}" in script
    body = {
        "signature_name": model["signature"],
        "instances": [{model["inputs"][0]["name"]: b64(DATA)}],
    }
    one = predict(f"{street.url}/", body, model["url"]).json()["predictions"][0]
    assert set(one) == set(model["outputs"])
    assert {task["name"] for task in model["tasks"]} <= set(one)


@pytest.mark.parametrize(
    "rules, said",
    [
        ({}, ""),
        ({"a": (0.5, "fixed")}, "It is the default, 0.5."),
        ({"a": (0.7, "fixed")}, "It was set by hand."),
        ({"a": (0.7, None)}, "It came with the model."),
        (
            {"a": (0.3, "f1"), "b": (0.2, "f1")},
            "It was chosen on validation data, to balance false alarms and misses.",
        ),
        (
            {"a": (0.3, "recall>=0.995"), "b": (0.5, "fixed"), "c": (0.5, "fixed")},
            "For a it was chosen on validation data, with the aim that at least 99.5% of the true "
            "cases are found. For b and c it is the default, 0.5.",
        ),
        (
            {"a": (0.3, "precision>=0.9"), **{str(n): (0.5, "fixed") for n in range(9)}},
            "For a it was chosen on validation data, with the aim that at least 90% of the yes "
            "answers are right. For 9 of the tasks it is the default, 0.5.",
        ),
    ],
)
def test_it_says_where_the_thresholds_come_from(rules, said):
    outputs = {name: Tensor(name, "float32", (), "x") for name in rules}
    served = SimpleNamespace(
        signatures={"serving_default": Signature("serving_default", outputs, outputs)},
        tasks=[
            {"name": name, "kind": "binary", "classes": [], "threshold": value, "rule": rule}
            for name, (value, rule) in rules.items()
        ],
        description={},
        version=1,
        folder=Path("nowhere"),
    )
    text = page("x", served, Limits())
    line = "The line across a bar is the task&#x27;s threshold: from there on the answer is yes."
    assert f"hidden>{f'{line} {said}' if said else ''}</p>" in text


IMAGES = {"image_bytes": Tensor("image_bytes", "string", (), "x")}


@pytest.mark.parametrize(
    "golden, offered",
    [
        ({"instances": [{"image_bytes": b64(DATA)}]}, 1),
        ({"instances": [b64(DATA)]}, 0),
        ({"instances": [{"image_bytes": "text"}]}, 0),
        ({"instances": ["text"]}, 0),
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
    served = SimpleNamespace(
        signatures={"serving_default": Signature("serving_default", IMAGES, IMAGES)},
        tasks=[],
        description={},
        version=1,
        folder=tmp_path,
    )
    found = Parsed(page("x", served, Limits()))
    assert len(json.loads(found.inside["script"][0])["samples"]) == offered


# ---------------------------------------------------------------- in Chromium

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
REFUSED = "the server responded with a status of 400"
SCENES = Path(__file__).parents[2] / "datasets" / "street_scenes" / "images"


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
    """The rows that the model of `save_pictures` has for an image, and the lengths of the bars."""
    mean = mean_of(data)
    why = f"yes ({mean:.3f} ≥ 0.400)" if mean >= 0.4 else f"no ({mean:.3f} < 0.400)"
    share = np.exp([mean, 1 - mean, 0])
    share /= share.sum()
    order = np.argsort(-share)
    classes = [[CLASSES[index], f"{share[index]:.3f}"] for index in order]
    decided = f"{CLASSES[order[0]]} (the likeliest)"
    rows = [["night", f"{mean:.3f}", why], ["sign", *classes[0], decided], *classes[1:]]
    return rows, [mean, *share[order]]


def dark_picture(seed):
    """Noise below the threshold of `night`."""
    pixels = np.random.default_rng(seed).integers(0, 120, (30, 50, 3), "uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_several_images_that_are_dropped(street, shown, tmp_path):
    files = {"one.png": DATA, "dark.png": dark_picture(1), "two.png": picture(4, (40, 33))}
    visit(shown, street.url)
    assert not at(shown, "note").is_displayed() and not at(shown, "clear").is_displayed()
    drop(shown, files)
    cards = results(shown, "Done: 3 images.")
    assert [card["name"] for card in cards] == ["one.png", "dark.png", "two.png"]
    assert [card["thumbnail"] for card in cards] == [40, 50, 33]
    for card, data in zip(cards, files.values(), strict=True):
        rows, lengths = expected(data)
        assert card["heads"] == HEADS and card["rows"] == rows and card["state"] == ""
        np.testing.assert_allclose([bar[0] for bar in card["bars"]], lengths, atol=0.01)
        assert card["bars"][0][1] == pytest.approx(0.4, abs=0.01)
        assert {bar[1] for bar in card["bars"][1:]} == {None}
    assert cards[1]["rows"][0][2].startswith("no (0.")
    assert "the task's threshold" in at(shown, "note").text
    assert complaints(shown) == []
    asked = shown.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    own = (street.url, f"blob:{street.url}", "data:")
    assert asked and all(name.startswith(own) for name in asked)
    drop(shown, {"later.png": picture(5)})  # above those that are there
    cards = results(shown, "Done: 4 images.")
    assert [card["name"] for card in cards] == ["later.png", "one.png", "dark.png", "two.png"]
    drop(shown, {})
    until(shown, lambda: "Only files" in at(shown, "message").text, "said nothing of no files")


def test_bad_files_between_good_ones(street, shown, tmp_path):
    visit(shown, street.url)
    files = {
        "a.png": DATA,
        "broken.jpg": b"hello",
        "wide.png": picture(1, (101, 200)),
        "heavy.png": DATA + bytes(100_000),
        "none.png": b"",
        "z.png": DATA,
    }
    drop(shown, files)
    cards = results(shown, "2 of 6 images done.")
    rows, _ = expected(DATA)
    assert [card["rows"] for card in cards] == [rows, [], [], [], [], rows]
    states = [
        "",
        "Not an image: no JPEG, PNG, GIF, BMP or WebP.",
        "Too large: 200 × 101 pixels, more than the 20,000 allowed.",
        f"Too large: {(len(DATA) + 100_000) / 1000:.1f} kB, and this server takes up to 75.0 kB.",
        "Empty.",
        "",
    ]
    assert [card["state"] for card in cards] == states
    said = at(shown, "message").text
    assert "broken.jpg: not an image: no JPEG, PNG, GIF, BMP or WebP. " in said
    assert "heavy.png: too large" in said and said.endswith("And 1 more.")
    body = shown.find_element("tag name", "body").text
    assert not re.search("picture|instances|bytes|b64|Expected|Received|[`{}]", body)
    assert all(REFUSED in line for line in complaints(shown))
    screenshot(shown, "page-bad-files", tmp_path)


def test_a_damaged_image_is_told_in_plain_words(street, shown):
    """The model's own decoder finds this one, and says more than a visitor can use."""
    visit(shown, street.url)
    drop(shown, {"cut.png": picture(2, (60, 60))[:3000]})
    (card,) = results(shown, "0 of 1 image done.")
    assert re.fullmatch("(Truncated|Damaged|Unreadable)[.]", card["state"])


def test_a_few_requests_at_a_time(street, shown, monkeypatch):
    def states():
        return [card["state"] for card in shown.execute_script(READ)]

    visit(shown, street.url)
    with monkeypatch.context() as patch:
        _, on = held(street, patch)
        drop(shown, {f"{number}.png": DATA for number in range(9)})
        until(shown, lambda: street.server.busy == 4, "never sent four requests")
        assert states() == ["Predicting …"] * 4 + ["Waiting …"] * 5
        at(shown, "clear").click()
        until(shown, lambda: not states(), "was never cleared")
        drop(shown, {"last.png": DATA})
        on.set()
        (card,) = results(shown, "Done: 1 image.")
    assert card["name"] == "last.png" and card["rows"] == expected(DATA)[0]
    assert complaints(shown) == []


def test_what_failed_through_no_fault_of_the_image_can_be_tried_again(
    street, shown, tmp_path_factory, monkeypatch
):
    visit(shown, street.url)
    with monkeypatch.context() as patch:
        patch.setattr(street.versions.get(), "call", lambda *_: 1 / 0)
        drop(shown, {"a.png": DATA})
        (card,) = results(shown, "0 of 1 image done.")
        assert "The server failed" in card["state"] and card["again"]
    shown.find_element("class name", "again").click()
    (card,) = results(shown, "Done: 1 image.")
    assert card["rows"] == expected(DATA)[0] and not card["again"]
    base = tmp_path_factory.mktemp("gone")
    save_pictures(base)
    with serving(base) as running:
        visit(shown, running.url)
    drop(shown, {"a.png": DATA})
    (card,) = results(shown, "a.png: the server cannot be reached.")
    assert card["state"] == "The server cannot be reached." and card["again"]
    complaints(shown)  # Chromium's own words for it


def test_by_keyboard_alone(street, shown, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys):
        ActionChains(shown).send_keys(*keys).perform()
        return shown.switch_to.active_element

    visit(shown, street.url)
    field = press(Keys.TAB)
    assert field == at(shown, "file") and field.get_attribute("multiple")
    assert field.accessible_name.startswith("Drop images here, or choose images")
    drawn = "return getComputedStyle(document.getElementById('drop')).outlineStyle"
    assert shown.execute_script(drawn) == "solid"
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(DATA)
    field.send_keys(f"{tmp_path / 'a.png'}\n{tmp_path / 'b.png'}")  # as the chooser would
    cards = results(shown, "Done: 2 images.")
    assert [card["name"] for card in cards] == ["a.png", "b.png"]
    assert press(Keys.TAB) == at(shown, "clear")
    assert press(Keys.ENTER) == at(shown, "file")
    assert shown.execute_script(READ) == [] and at(shown, "message").text == ""


@pytest.mark.parametrize("width", [None, 360], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_any_window_and_light(street, shown, width, scheme, tmp_path):
    visit(shown, street.url, width, scheme)
    long = "a_rather_long_name_without_any_hyphen_in_it_as_phones_give_them_to_photos.png"
    scenes = {f"{n:05}.jpg": (SCENES / f"{n:05}.jpg").read_bytes() for n in range(3)}
    drop(shown, {**scenes, "broken.jpg": b"hello", long: dark_picture(2)})
    results(shown, "4 of 5 images done.")
    measured = "return [document.documentElement.scrollWidth, innerWidth]"
    assert shown.execute_script(measured) == [width or 1000] * 2
    paper = luminance(shown, "body", "backgroundColor")
    assert (paper < 0.05) if scheme == "dark" else (paper > 0.8)
    for chosen in ("h1", ".version", "#note", "#message", "h2", ".state.wrong", "td", "thead th"):
        behind = "#results li" if chosen in ("h2", ".state.wrong", "td", "thead th") else "body"
        lights = [
            luminance(shown, chosen, "color"),
            luminance(shown, behind, "backgroundColor"),
        ]
        assert (max(lights) + 0.05) / (min(lights) + 0.05) >= 4.5, chosen
    roles = {cell.aria_role for cell in shown.find_elements("css selector", "tbody tr *")}
    assert {"rowheader", "cell"} <= roles  # a table still, however it is laid out
    file = screenshot(shown, f"page-{'narrow' if width else 'wide'}-{scheme}", tmp_path)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_tables_fit_a_telephone(table, houses, shown, tmp_path):
    for running, field in ((table[0], "#columns input"), (houses, "#numbers")):
        visit(shown, running.url, 360, "dark")
        at(shown, "sample").click()
        results(shown, "Done.")
        assert shown.execute_script("return document.documentElement.scrollWidth") == 360
        assert shown.find_element("css selector", field).rect["width"] > 250
        screenshot(shown, f"page-narrow-{field.split()[0][1:]}", tmp_path)


def luminance(shown, chosen, what):
    """How light a colour is, as WCAG 2 has it: https://www.w3.org/TR/WCAG21/#dfn-relative-luminance"""
    said = shown.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", chosen, what
    )
    shares = np.array([int(number) for number in re.findall(r"\d+", said)[:3]]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_sample_is_offered_where_the_model_brings_one(sampled, street, shown):
    visit(shown, street.url)
    assert not at(shown, "sample").is_displayed()
    visit(shown, sampled.url)
    at(shown, "sample").click()
    (card,) = results(shown, "Done: 1 image.")
    assert card["name"] == "Made-up sample 1" and card["rows"] == expected(DATA)[0]
    assert "at least 90% of the yes answers are right" in at(shown, "note").text
    assert complaints(shown) == []


def test_a_row_of_a_table(table, shown, tmp_path):
    from selenium.webdriver import Keys

    running, model = table
    values = model.predict(np.array([[40.5, 70]]), verbose=0)[0]
    visit(shown, running.url)
    assert not at(shown, "drop").is_displayed()
    age, weight = shown.find_elements("css selector", "#columns input")
    assert (age.accessible_name, weight.accessible_name) == ("age", "weight")
    age.send_keys("40,5")
    weight.send_keys("7o")
    at(shown, "predict").click()
    said = 'Weight must be a number, got "7o".'
    assert results(shown, said) == [] and shown.switch_to.active_element == weight
    assert weight.get_attribute("aria-invalid") == "true"
    weight.send_keys(Keys.BACKSPACE, "0", Keys.ENTER)
    (card,) = results(shown, "Done.")
    assert card["heads"] == ["Task", "Probability", "Decision"]  # no classes, and no column of them
    assert card["rows"] == [
        [
            name,
            f"{p:.3f}",
            f"{'yes' if p >= 0.5 else 'no'} ({p:.3f} {'≥' if p >= 0.5 else '<'} 0.500)",
        ]
        for name, p in zip(("ill", "well"), values, strict=True)
    ]
    np.testing.assert_allclose(card["bars"], [[value, 0.5] for value in values], atol=0.01)
    assert weight.get_attribute("aria-invalid") is None
    assert at(shown, "note").text.endswith("It is the default, 0.5.")
    assert complaints(shown) == []
    screenshot(shown, "page-table", tmp_path)
    at(shown, "sample").click()
    until(shown, lambda: age.get_attribute("value") != "40,5", "filled nothing in")
    results(shown, "Done.")


def test_a_row_of_numbers_with_many_classes(houses, shown):
    visit(shown, houses.url)
    field = at(shown, "numbers")
    assert field.accessible_name.startswith("One row: 101 numbers")
    field.send_keys("1 2")
    at(shown, "predict").click()
    results(shown, "The row must have 101 numbers, got 2.")
    field.clear()
    field.send_keys("1 x " + "0 " * 99)
    at(shown, "predict").click()
    results(shown, 'Number 2 must be a number, got "x".')
    at(shown, "sample").click()
    (card,) = results(shown, "Done.")
    given = [float(text) for text in field.get_attribute("value").split()]
    body = {"instances": [given]}
    answer = predict(houses.url, body, "/v1/models/houses:predict").json()["predictions"][0]
    assert card["heads"] == ["Task", "Class", "Probability or number", "Decision"]
    assert card["rows"][0][0] == "price" and card["rows"][0][2] == ""
    assert float(card["rows"][0][1]) == pytest.approx(answer["price"], rel=1e-4)
    ranked = sorted(zip(answer["kind"], "abcdefg", strict=True), reverse=True)
    assert card["rows"][1] == [
        *("kind", ranked[0][1], f"{ranked[0][0]:.3f}"),
        f"{answer['kind_decision']} (the likeliest)",
    ]
    assert len(card["rows"]) == 1 + 5 and len(card["bars"]) == 5  # a number has no bar
    shown.find_element("class name", "all").click()
    (card,) = shown.execute_script(READ)
    assert [row[-2:] for row in card["rows"][2:]] == [[name, f"{p:.3f}"] for p, name in ranked[1:]]
    assert not shown.find_element("class name", "all").is_displayed()
    assert not at(shown, "note").is_displayed() and complaints(shown) == []


def test_the_page_follows_the_model_s_name_and_version(street):
    text = requests.get(street.url, timeout=60).text
    assert "<h1>street</h1>" in text and "Version 1</p>" in text
    assert re.search(r"<title>street", text)
