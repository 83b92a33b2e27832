"""Train, report and export: `python train.py`. Settings are in project.toml."""

import kerasmtl as kt

kt.quiet_tensorflow()  # hides its start-up lines; has to come before Keras

import keras  # noqa: E402
from model import build  # noqa: E402


def main(project: kt.Project) -> None:
    keras.utils.set_random_seed(project.training.seed)
    manifest = project.manifest()
    print(manifest.coverage().to_string(float_format="%.2f"), "\n")
    train, val, test = manifest.split(seed=project.training.seed)
    with project.start_run(train, val, test) as run:  # a folder in runs/
        model = build(project, train)
        train_data = project.dataset(train, model, training=True)
        val_data = project.dataset(val, model) if len(val) else None
        head = project.fit_head(model, train, val, run)  # by folds; None if you give hidden = [512]
        model = head.attach(model) if head else model
        plan = project.plan(model, train_data, val_data, head)
        print(plan, "\n")
        before = model.get_weights()
        loss = kt.losses.for_tasks(train.tasks, train.labels)
        resume = kt.callbacks.Resume(run.state, model, [*run.callbacks(), kt.callbacks.BestEpoch()])
        for stage in resume.stages(plan, train_data, val_data):  # after the last finished epoch
            stage.prepare(model)  # kt.freeze(model) or kt.unfreeze(model, …)
            model.compile(
                stage.optimizer(model, len(train_data)),  # Adam, at the rate of the stage
                loss=loss,
                metrics=kt.metrics.for_tasks(train.tasks),
            )
            # The model itself or, where the head alone is trained, the head on cached features.
            part, data = stage.data(model, train_data, val_data)
            part.fit(
                **data,  # x, validation_data and steps_per_epoch
                initial_epoch=resume.epoch,
                epochs=resume.until,
                callbacks=[resume],  # and through it those that it was given
                verbose=run.verbose,
            )
        if head and len(plan) and val_data:
            kt.plans.keep_better(model, before, val_data, val.tasks, groups=val.groups)
        unseen = val_data if len(plan) else None  # a head of all folds has seen validation rows
        kt.save_model(model, run.checkpoint)
        project.finish(run, model, test, unseen, None if len(plan) else head)  # kt.evaluate
        print("SavedModel:", project.export(model, unseen))


if __name__ == "__main__":
    with kt.Project.script(__file__) as project:  # whose errors are one line, without a traceback
        main(project)
