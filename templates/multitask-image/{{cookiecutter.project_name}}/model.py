"""The network: a backbone with a new head. Change it as you like."""

import keras

import kerasmtl as kt


def build(project: kt.Project, train: kt.Manifest) -> keras.Model:
    """Takes images in [0, 1], with one output per task; the backbone is frozen."""
    return kt.build_model(
        project.load_backbone(),
        train.tasks,
        image_size=project.image_size,
        hidden=project.hidden,  # none if train.py chooses the head
        dropout=project.model.dropout,
        labels=train.labels,
    )
