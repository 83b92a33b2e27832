"""A small server for exported models, its client, and prediction without a server.

Imports run `config, errors <- served_model <- batching <- protocols <- versions, page <- server`,
and `predictor <- batch_predict`. `config` and `errors` need neither TensorFlow nor a web server;
Starlette, Uvicorn and Prometheus' client are needed by `monitoring` and `server` alone.
"""
