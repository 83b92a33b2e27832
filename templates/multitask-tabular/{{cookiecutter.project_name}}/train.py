"""Train, report and export: `python train.py`. Settings are in project.toml."""

from pathlib import Path

import kerasmtl as kt

kt.quiet_tensorflow()  # hides its start-up lines; has to come before Keras

import keras  # noqa: E402
from model import build  # noqa: E402


def main() -> None:
    project = kt.Project.load(Path(__file__).parent)
    settings = project.training
    keras.utils.set_random_seed(settings.seed)

    table = project.manifest()
    print(table.coverage().to_string(float_format="%.2f"), "\n")
    train, val, test = table.split(seed=settings.seed)
    # A folder in runs/ for the log, the history, the model and its scores.
    with project.start_run(train, val, test) as run:
        model = build(project, train)
        train_data = kt.make_dataset(train, batch_size=settings.batch_size, training=True)
        val_data = kt.make_dataset(val, batch_size=settings.batch_size) if len(val) else None
        test_data = kt.make_dataset(test, batch_size=settings.batch_size)

        steps = settings.epochs * len(train_data)
        model.compile(
            keras.optimizers.Adam(
                keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
            ),
            loss=kt.losses.for_tasks(table.tasks, train.labels),
            metrics=kt.metrics.for_tasks(table.tasks),
            jit_compile=False,  # compiling takes longer than training so small a network
        )
        model.fit(
            train_data,
            validation_data=val_data,
            epochs=settings.epochs,
            callbacks=[kt.callbacks.BestEpoch(), *run.callbacks()],
            shuffle=False,  # the data set shuffles itself
            verbose=run.verbose,
        )
        kt.save_model(model, run.checkpoint)  # with the weights of the best epoch

        decisions = kt.calibration.fit_decisions(
            model, val_data, table.tasks
        )  # from which probability: yes
        report = kt.evaluate(model, test_data, table.tasks, threshold=decisions)
        print(report)
        run.finish(report, decisions)
        folder = kt.export_saved_model(
            model,
            project.export_folder,
            table.tasks,
            input=table.input,
            validation=val_data,
            decisions=decisions,
            card={"data": project.trained().data},
        )
        print("SavedModel:", folder)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(
            "\nStopped. The last finished epoch, if there was one, is in runs/latest/model.keras: "
            "kerasmtl evaluate, export and predict use it."
        ) from None
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        raise SystemExit(f"Error: {error}") from None
