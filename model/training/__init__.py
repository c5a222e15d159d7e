"""Training: from a data set and a ``TrainingConfig`` to a checkpoint that serves.

    run.py              a whole run in a folder, as ``frcnn train`` does it
    config.py           TrainingConfig, and the learning rate's schedule
    trainer.py          one model's steps, averaged weights and checkpoints
    alternating.py      joint training, and the paper's 4-step training
    losses.py           the four losses; what each schedule minimises
    targets.py          matching anchors and regions to the ground truth, and sampling them
    batches.py          batches of augmented images
    augment/            changes of images and labels
    initial_weights.py  the weights that training starts from
    distributed.py      several processes as one
    log.py              losses in a file

    factoring.py            fc6 of a trained detector in two thinner layers
    quantization_ranges.py  the input ranges of a trained detector's layers, for int8

Nothing that serves imports this package.
"""
