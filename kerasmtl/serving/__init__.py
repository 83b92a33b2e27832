"""A small server for exported models: TensorFlow Serving's REST, Open Inference Protocol, a page.

Imports run `config, errors <- served_model <- batching <- protocols <- versions, page <- app <-
server`. `config` and `errors` need neither TensorFlow nor a web server; Starlette and Uvicorn are
needed by `app`, `middleware` and `server` alone.
"""
