"""The README's library example runs as it is printed."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_library_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 22
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "traffic_light" in printed and "saved_models/street/1" in printed
    assert (tmp_path / "saved_models" / "street" / "1" / "saved_model.pb").is_file()
