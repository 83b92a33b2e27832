"""A small server for exported models: TensorFlow Serving's REST, Open Inference Protocol, a page.

Modules: `limits, problems, folders ← served ← batching, requests, replay ← versions, answers ←
app, page, running`. Only `served` and `replay` know TensorFlow, only `app` and `running` Starlette
and Uvicorn.
"""
