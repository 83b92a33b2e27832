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

    manifest = project.manifest()
    print(manifest.coverage().to_string(float_format="%.2f"), "\n")
    train, val, test = manifest.split(seed=settings.seed)
    # A folder in runs/ for the log, the history, the model and its scores.
    with project.start_run(train, val, test) as run:
        model = build(project, train)
        size = model.input_shape[1:3]
        augment = kt.data.default_augmentation(flip=settings.flip) if settings.augment else None
        train_data = kt.make_dataset(
            train, size, settings.batch_size, training=True, seed=settings.seed, augment=augment
        )
        val_data = kt.make_dataset(val, size, settings.batch_size) if len(val) else None
        test_data = kt.make_dataset(test, size, settings.batch_size)

        model.compile(
            "adam",
            loss=kt.losses.for_tasks(manifest.tasks, train.labels),
            metrics=kt.metrics.for_tasks(manifest.tasks),
        )
        plan = kt.plans.plan_for(
            model,
            train_data,
            settings.plan,
            head_epochs=settings.epochs,
            epochs=settings.fine_tune_epochs,
            learning_rate=settings.learning_rate,
            fine_learning_rate=settings.fine_tune_learning_rate,
            patience=5,
        )
        print(plan, "\n")
        # Each stage of the plan is kt.freeze(model) or kt.unfreeze(model, …), model.compile(…) and
        # model.fit(…); put those here to do it your way. Killed at any moment, the same call
        # resumes after the last finished epoch.
        kt.fine_tune(
            model, train_data, val_data, plan, callbacks=run.callbacks(), directory=run.state
        )
        kt.save_model(model, run.checkpoint)  # with the weights of the best epoch

        decisions = kt.calibration.fit_decisions(
            model, val_data, manifest.tasks
        )  # from which probability: yes
        report = kt.evaluate(model, test_data, manifest.tasks, threshold=decisions)
        print(report)
        run.finish(report, decisions)
        folder = kt.export_saved_model(
            model,
            project.export_folder,
            manifest.tasks,
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
            "\nStopped. `python train.py` resumes after the last finished epoch. If there was one, "
            "it is in runs/latest/model.keras: kerasmtl evaluate, export and predict use it."
        ) from None
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        raise SystemExit(f"Error: {error}") from None
