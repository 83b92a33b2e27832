"""Refuse a name that kerasmtl's commands would refuse later."""

import re
import sys

NAME = r"""{{ cookiecutter.project_name }}"""

if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", NAME):
    sys.exit(
        "project_name must be letters, digits, '_', '-' and '.', beginning with a letter or "
        f"digit, got {NAME!r}"
    )
