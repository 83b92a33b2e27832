"""Train, report and export: `python train.py`. Settings are in project.toml."""

from pathlib import Path

import keras
from model import build

import kerasmtl as kt


def main() -> None:
    project = kt.Project.load(Path(__file__).parent)
    settings = project.training
    keras.utils.set_random_seed(settings.seed)

    manifest = project.manifest()
    print(manifest.coverage().to_string(float_format="%.2f"), "\n")
    train, val, test = manifest.split(seed=settings.seed)
    project.remember(train, val, test)  # for kerasmtl evaluate, export and predict
    model = build(project, train)
    size = model.input_shape[1:3]
    train_data = kt.make_dataset(train, size, settings.batch_size, training=True)
    val_data = kt.make_dataset(val, size, settings.batch_size)
    test_data = kt.make_dataset(test, size, settings.batch_size)

    # First the new head; then, if fine_tune_epochs says so, everything at a lower rate.
    done = 0
    for frozen, epochs, learning_rate in [
        (True, settings.epochs, settings.learning_rate),
        (False, settings.fine_tune_epochs, settings.fine_tune_learning_rate),
    ]:
        if epochs == 0:
            continue
        kt.freeze(model) if frozen else kt.unfreeze(model)
        model.compile(
            keras.optimizers.Adam(learning_rate),
            loss=kt.default_losses(manifest.tasks, train.labels),
            metrics=kt.default_metrics(manifest.tasks),
        )
        model.fit(
            train_data,
            validation_data=val_data,
            initial_epoch=done,
            epochs=done + epochs,
            callbacks=[kt.Checkpoint(project.checkpoint)],
            shuffle=False,  # the data set shuffles itself
            verbose=2,
        )
        done += epochs

    print(kt.evaluate(model, test_data, manifest.tasks))
    print("SavedModel:", kt.export_saved_model(model, project.export_folder, manifest.tasks))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(
            "\nStopped. The last finished epoch, if there was one, is in runs/model.keras: "
            "kerasmtl evaluate, export and predict use it."
        ) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"Error: {error}") from None
