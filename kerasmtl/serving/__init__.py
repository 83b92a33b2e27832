"""A small server for exported models: TensorFlow Serving's REST, Open Inference Protocol, a page.

Modules: `limits, problems, folders, labels ← served ← batching, values, replay ← versions,
tfserving, kserve ← app, bodies, heads, metrics, observed, page, running`. Only `served` and
`replay` know TensorFlow, only the last group Starlette and Uvicorn.
"""
