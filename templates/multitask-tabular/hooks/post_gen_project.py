"""Remove what an installer compiled inside the template."""

import shutil
from pathlib import Path

for folder in Path.cwd().rglob("__pycache__"):
    shutil.rmtree(folder)
