"""Training in stages: first the new head, then, with more data, the backbone as well.

`plans` says what is trained in which stage, at the learning rates of `optimizers`; `fine_tune` is
the loop over stages, and train.py of a project the same loop written out. `resume.Resume` makes one
training of it that survives a kill; `features`, `feature_cache` and `feature_store` compute a
frozen backbone once; `runs` and `record` are the folder of a training and what it was trained on.
"""
