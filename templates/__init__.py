"""Project templates: one cookiecutter folder each."""
