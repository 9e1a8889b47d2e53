"""How many steps, and the learning rate of each."""

import math

from mathmill.training.options import TrainerOptions


def total_steps(options: TrainerOptions, num_units: int) -> int:
    """Steps asked for, or those of the epochs, the last one rounded up."""
    if options.steps is not None:
        return options.steps
    return math.ceil((options.epochs or 1.0) * num_units / options.global_batch)


def learning_rate(options: TrainerOptions, step: int, steps: int) -> float:
    """Of a step counted from 0: a linear rise over the warm-up, then constant, or half a cosine down to the least."""
    peak, least, warmup = options.learning_rate, options.min_learning_rate, options.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if options.schedule == "constant":
        return peak
    share = (step - warmup) / max(1, steps - warmup)
    return least + (peak - least) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
