"""The network: encoded or normalised columns, and a head. Change it as you like."""

import keras

import kerasmtl as kt


def build(project: kt.Project, train: kt.Manifest) -> keras.Model:
    """Rows of numbers in, NaN = missing; one output per task. Normalisation learns from `train`."""
    settings = project.model
    if settings.hidden == "auto":  # nothing to train in it: train.py chooses the head
        return kt.build_model(kt.backbones.columns(train.values), train.tasks, labels=train.labels)
    backbone = kt.backbones.mlp(
        train.values,
        hidden=settings.hidden,
        dropout=settings.dropout,
        input_dropout=settings.input_dropout,
        batch_norm=settings.batch_norm,
        indicators=settings.indicators,
    )
    return kt.build_model(backbone, train.tasks, labels=train.labels)
