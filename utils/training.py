"""One readable training loop for every chapter."""

import copy
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from utils import checkpoints, runtime

after_step = []  # functions (step, loss), called after each step; one may raise to stop


@dataclass
class History:
    """What happened during a training."""

    losses: list[float] = field(default_factory=list)  # one a step
    scores: list[tuple[int, float]] = field(default_factory=list)  # (step, score)
    seconds: float = 0.0  # spent in training and evaluation, interruptions left out

    @property
    def steps(self):
        return len(self.losses)

    @property
    def best(self):
        """The (step, score) with the highest score; the first of equal ones, and never
        one that is nan. None where there is no score."""
        known = [pair for pair in self.scores if not math.isnan(pair[1])]
        return max(known, key=lambda pair: pair[1], default=None)


def fit(
    model,
    sample,
    loss,
    optimizer,
    steps,
    *,
    evaluate=None,
    every=None,
    warmup=0,
    power=0.9,
    clip=None,
    seed=0,
    checkpoint=None,
    progress=True,
):
    """Train `model` for a number of optimiser steps and return its `History`.

    sample(generator) returns a batch (images, *targets) on the model's device;
    loss(logits, *targets) is a scalar; evaluate(model) is a score, higher is better,
    taken every `every` steps and after the last one.

    The learning rates of the optimiser rise over `warmup` steps and fall to zero as
    (1 - step / steps) ** power (the poly schedule). `clip` bounds the norm of the
    gradient. `checkpoint` names a file, written at each validation and at least ten
    times: an interrupted run goes on from it, on a CPU to the same numbers (some
    operations of a GPU add up in another order each time), and a finished one is read
    back instead of trained again.
    The precision is that of `runtime.precision`. On an accelerator a line says, once
    the first step is done, how long the training would take on a Colab T4.
    At the end the model is in eval mode and holds the weights with the best score; the
    last ones where there is none.

    A loss or weights that are no longer finite: FloatingPointError, and no such state
    is saved. steps under 1, every or warmup under 0, an empty batch: ValueError. A
    checkpoint that cannot be written: OSError, before the first step.
    """
    if steps < 1 or warmup < 0 or (every or 0) < 0:
        raise ValueError(
            f"steps {steps}, every {every}, warmup {warmup}: a training has at least "
            "one step, and none of the three is negative"
        )
    every = every or steps
    keep = max(1, steps // 10)  # steps that an interruption may cost
    run = _Run(model, optimizer, poly(steps, power, warmup), seed, checkpoint)
    if run.checkpoint and run.step < steps:
        runtime.check_writable(run.checkpoint.parent)
    hidden = not progress or run.step >= steps
    with tqdm(total=steps, initial=run.step, disable=hidden, mininterval=1.0) as bar:
        estimate = runtime.estimate(run.device, steps - run.step, bar.write)
        counting = nullcontext() if hidden else estimate  # around the first step
        while run.step < steps:
            start = time.perf_counter()
            model.train()
            ends = (n - run.step % n for n in (every, keep))
            for _ in range(min(*ends, steps - run.step)):
                images, *targets = sample(run.generator)
                check_batch(images)
                images = images.contiguous(memory_format=torch.channels_last)
                with counting:
                    with runtime.autocast(run.device):
                        value = loss(model(images), *targets)
                    run.update(value, clip)
                counting = nullcontext()
                bar.update()
                for call in after_step:
                    call(run.step, value.item())
            score = None
            if evaluate is not None and (run.step % every == 0 or run.step == steps):
                score = run.evaluate(evaluate)
                bar.set_postfix(loss=f"{run.recent_loss:.3f}", score=f"{score:.3f}")
            run.end_of_round(score, time.perf_counter() - start)
    return run.finish()


def __getattr__(name):
    """`restored_seconds`, which pages read here."""
    if name == "restored_seconds":
        return checkpoints.restored_seconds
    raise AttributeError(name)


def check_batch(images):
    if not len(images):
        raise ValueError(
            "a batch without images: sample(generator) must give at least one, so look "
            "at the size of the data set and of the batch"
        )


def poly(steps, power=0.9, warmup=0):
    """Factor of the learning rate at a step: a linear rise, then the poly fall."""

    def factor(step):
        rise = min(1.0, (step + 1) / (warmup + 1))
        return rise * max(0.0, 1 - step / steps) ** power

    return factor


class _Run:
    """All that a training must remember to go on as if nothing had happened."""

    def __init__(self, model, optimizer, factor, seed, checkpoint):
        self.device = next(model.parameters()).device
        self.model = model.to(memory_format=torch.channels_last)
        self.optimizer = optimizer
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        half = runtime.precision(self.device) == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.generator = torch.Generator().manual_seed(seed)  # draws the batches
        torch.manual_seed(seed)  # dropout
        self.losses = []  # of the round under way, still on the device
        self.history = History()
        self.best_weights = None
        self.checkpoint = Path(checkpoint) if checkpoint else None
        if self.checkpoint and self.checkpoint.exists():
            state = checkpoints.load_weights(self.checkpoint)
            with checkpoints.restoring(self.checkpoint):
                self.restore(state)

    @property
    def step(self):
        return self.history.steps + len(self.losses)

    @property
    def recent_loss(self):
        return float(torch.stack(self.losses[-20:]).mean())

    def update(self, value, clip):
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(value).backward()
        if clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # The scaler leaves a step out when a gradient overflows, and takes a smaller
        # scale then: a step that was not taken does not count for the schedule.
        if self.scaler.get_scale() >= scale:
            self.schedule.step()
        self.losses.append(value.detach().float())

    def evaluate(self, evaluate):
        self.model.eval()
        with torch.inference_mode():
            return float(evaluate(self.model))

    def end_of_round(self, score, seconds):
        """Write down losses and score, keep the best weights, save to disk."""
        self.history.losses += torch.stack(self.losses).tolist()
        self.losses = []
        self.check_finite()
        self.history.seconds += seconds
        if score is not None:
            self.history.scores.append((self.step, score))
            if self.history.best and self.history.best[0] == self.step:
                self.best_weights = copy.deepcopy(self.model.state_dict())
        self.save()

    def check_finite(self):
        """What has exploded is never saved: a rerun must not go on from it."""
        weights = all(p.isfinite().all() for p in self.model.parameters())
        if weights and all(map(math.isfinite, self.history.losses)):
            return
        kept = ""
        if self.checkpoint and self.checkpoint.exists():
            kept = f", and delete {self.checkpoint}, which goes on with the old rate"
        raise FloatingPointError(
            f"the loss or the weights are no longer finite at step {self.step}: lower "
            f"the learning rate, or set clip{kept}"
        )

    def finish(self):
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        self.model.eval()
        return self.history

    def save(self):
        if self.checkpoint is None:
            return
        checkpoints.save_weights(
            {
                "model": self.model.state_dict(),
                "best_weights": self.best_weights,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
                "generator": self.generator.get_state(),
                "rng": torch.get_rng_state(),
                "rng_device": runtime.rng_state(self.device),
                "history": vars(self.history),
            },
            self.checkpoint,
        )

    def restore(self, state):
        self.model.load_state_dict(state["model"])
        self.best_weights = state["best_weights"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        runtime.set_rng_state(self.device, state.get("rng_device"))
        self.history = History(**state["history"])
        checkpoints.restored_seconds += self.history.seconds

