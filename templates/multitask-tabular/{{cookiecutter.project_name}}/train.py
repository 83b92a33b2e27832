"""Train, report and export: `python train.py`. Settings are in project.toml."""

from pathlib import Path

import kerasmtl as kt

kt.quiet_tensorflow()  # hides its start-up lines; has to come before Keras

import keras  # noqa: E402
from model import build  # noqa: E402


def main() -> None:
    project = kt.Project.load(Path(__file__).parent)
    keras.utils.set_random_seed(project.training.seed)
    manifest = project.manifest()
    print(manifest.coverage().to_string(float_format="%.2f"), "\n")
    train, val, test = manifest.split(seed=project.training.seed)
    with project.start_run(train, val, test) as run:  # a folder in runs/
        model = build(project, train)
        train_data = project.dataset(train, model, training=True)
        val_data = project.dataset(val, model) if len(val) else None
        plan = project.plan(model, train_data, val_data)
        print(plan, "\n")

        loss = kt.losses.for_tasks(train.tasks, train.labels)
        resume = kt.callbacks.Resume(run.state, model, [*run.callbacks(), kt.callbacks.BestEpoch()])
        for stage in resume.stages(plan, train_data, val_data):  # after the last finished epoch
            stage.prepare(model)  # what is trained: here everything
            model.compile(
                stage.optimizer(model, len(train_data)),  # Adam, at the rate of the stage
                loss=loss,
                metrics=kt.metrics.for_tasks(train.tasks),
                jit_compile=False,  # XLA takes longer to compile so small a network than it runs
            )
            model.fit(
                train_data,
                validation_data=val_data,
                initial_epoch=resume.epoch,
                epochs=resume.until,
                callbacks=[resume],  # and through it those that it was given
                shuffle=False,  # the data set shuffles itself
                verbose=run.verbose,
            )
        kt.save_model(model, run.checkpoint)

        # From which probability on the answer is yes, fitted on the validation split.
        decisions = kt.calibration.fit_decisions(model, val_data, train.tasks)
        report = kt.evaluate(model, project.dataset(test, model), train.tasks, decisions)
        print(report)
        run.finish(report, decisions)
        folder = kt.export_saved_model(
            model,
            project.export_folder,
            train.tasks,
            input=train.input,
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
