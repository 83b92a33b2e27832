"""`kerasmtl report`, and the report that train.py writes, in a browser."""

import http.server
import json
import runpy
import threading
from functools import partial

import pytest
from browser import chromium, complaints, screenshot, visit
from click.testing import CliRunner

from kerasmtl.cli import main
from kerasmtl.evaluation import html_report

TRANSFER = {"kind": "transfer", "sentences": ["It pays."], "table": {"columns": [], "rows": []}}


def kerasmtl(*words, code=0):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with the included images that was trained for an epoch, and what it printed."""
    folder = tmp_path_factory.mktemp("project") / "street"
    kerasmtl("new", "multitask-image", folder, "--no-input")
    toml = folder / "project.toml"
    toml.write_text(toml.read_text().replace("epochs = 20", "epochs = 1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        runpy.run_path("train.py", run_name="__main__")
    return folder


@pytest.mark.slow
def test_the_report_of_a_training_can_be_made_again(project, tmp_path):
    (run,) = [path for path in (project / "runs").iterdir() if not path.is_symlink()]
    first = (run / "report.html").read_text()
    assert "report.html" in (run / "train.log").read_text()
    out, kept = tmp_path / "again.html", project / "runs" / "compare"
    said = kerasmtl("report", "--project", project, "--run", run.name, "--output", out)
    assert "again.html" in said and "left out" not in said
    assert out.read_text() == first
    kept.mkdir()
    (kept / "transfer.json").write_text(json.dumps(TRANSFER))
    kerasmtl("report", "--project", project, "--compare")
    assert "It pays." in (run / "report.html").read_text()
    assert "--run" in kerasmtl("report", "--project", project, "--run", "never", code=1)


@pytest.mark.slow
def test_a_browser_asks_for_nothing_else_and_scrolls_down_only(project, tmp_path):
    asked = []

    class Server(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form, *values):
            asked.append(values[0])

    with chromium(tmp_path / "profile") as driver:
        serve = partial(Server, directory=project / "runs" / "latest")
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/report.html"
            for width in (360, 1000):
                paper = set()
                for scheme in ("light", "dark"):
                    visit(driver, url, width, scheme)
                    measured = "return [document.documentElement.scrollWidth, innerWidth]"
                    assert driver.execute_script(measured) == [width] * 2
                    colours = "return ['body', 'svg text', 'svg path'].map(name => "
                    colours += "getComputedStyle(document.querySelector(name)).color).join()"
                    paper.add(driver.execute_script(colours))
                    loaded = "return performance.getEntriesByType('resource').map(e => e.name)"
                    assert [n for n in driver.execute_script(loaded) if n[:5] != "data:"] == []
                    assert complaints(driver) == []
                    screenshot(driver, f"report-{width}-{scheme}", tmp_path)
                assert len(paper) == 2  # the text is light where the page is dark
            server.shutdown()
    assert asked and {line.split()[1] for line in asked} == {"/report.html"}


def test_a_report_that_fails_does_not_lose_the_training(tmp_path, monkeypatch, capsys):
    import keras
    import numpy as np

    import kerasmtl as kt

    rows = "".join(f"{n % 7},{n % 2}\n" for n in range(40))
    (tmp_path / "labels.csv").write_text("x,a\n" + rows)
    toml = 'name = "p"\n[data]\nlabels = "labels.csv"\ntasks = ["a"]\n[input]\nkind = "table"\n'
    (tmp_path / "project.toml").write_text(toml)
    project = kt.Project.load(tmp_path)
    train, val, test = project.manifest().split()
    run = project.start_run(train, val, test)
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(inputs))
    kt.save_model(model, run.checkpoint)
    monkeypatch.setattr(html_report, "render_report", lambda results: 1 / 0)
    report = project.finish(run, model, test)
    said = capsys.readouterr().out
    assert run.finished and np.isfinite(report.macro_auc)
    assert "report.html was not written: ZeroDivisionError" in said
    assert not (run.folder / "report.html").exists()
