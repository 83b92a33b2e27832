"""Training in stages: first the new head, then, with more data, the backbone as well."""
