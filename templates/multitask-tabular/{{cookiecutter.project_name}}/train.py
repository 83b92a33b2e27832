"""Train, report and export: `python train.py`. Settings are in project.toml."""

from pathlib import Path

import keras
from model import build

import kerasmtl as kt


def main() -> None:
    project = kt.Project.load(Path(__file__).parent)
    settings = project.training
    keras.utils.set_random_seed(settings.seed)

    table = project.manifest()
    print(table.coverage().to_string(float_format="%.2f"), "\n")
    train, val, test = table.split(seed=settings.seed)
    project.remember(train, val, test)  # for kerasmtl evaluate, export and predict
    model = build(project, train)
    train_data = kt.make_table_dataset(train, settings.batch_size, training=True)
    val_data = kt.make_table_dataset(val, settings.batch_size)
    test_data = kt.make_table_dataset(test, settings.batch_size)

    steps = settings.epochs * len(train_data)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
        ),
        loss=kt.default_losses(table.tasks, train.labels),
        metrics=kt.default_metrics(table.tasks),
        jit_compile=False,  # compiling would take longer than the training of so small a network
    )
    model.fit(
        train_data,
        validation_data=val_data,
        epochs=settings.epochs,
        callbacks=[kt.Checkpoint(project.checkpoint)],
        shuffle=False,  # the data set shuffles itself
        verbose=2,
    )

    print(kt.evaluate(model, test_data, table.tasks))
    folder = kt.export_saved_model(
        model,
        project.export_folder,
        table.tasks,
        columns=table.columns,
        packed_bits=project.table.packed_bits,
        validation=val_data if len(val) else None,
        data=project.trained().data,
    )
    print("SavedModel:", folder)


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
