"""Runs: trainings whose results are kept.

Two kinds. What a reader's machine trains lies in runs/, one checkpoint a training, and
is read back instead of trained again. What the book shows lies in results/ and belongs
to it: results/<chapter>/<run>.json, the record, and <run>.safetensors, the weights. A
record holds as long as its fingerprints are those of the code that stands.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import date

import torch
from IPython.utils.capture import capture_output
from tqdm.auto import tqdm

from utils import data, runtime, training
from utils.checkpoints import replacing
from utils.fingerprint import fingerprint

FIRST = 20  # losses that a record holds, and that a restamp makes again
CURVE = 400  # points of a recorded curve, at most


def path(chapter, name, *decisive):
    """The checkpoint of a training, for `utils.training.fit`: runs/<chapter>/<name>-
    <fingerprint>.pt. Change anything decisive, and the training is made anew."""
    decisive = (*decisive, runtime.profile(), runtime.device().type, torch.__version__)
    return runtime.runs() / chapter / f"{name}-{fingerprint(*decisive)}.pt"


@dataclass(frozen=True)
class Run:
    """A training that the book keeps. A chapter defines it in a cell tagged `model`.

    stages      recipes; each goes on from the weights of the one before
    short       the same for the embedded stand-in and for the profile smoke
    data        by role, as "train" or "test": the arguments of `utils.data.load`
    build       recipe -> network
    train       (network, recipe, sets by role, checkpoint) -> `History`
    score       (network, sets by role) -> `Scores`
    weights     whether they are kept too, or the record alone

    A name with a hyphen, as skips-none-0, belongs to an experiment: skips.
    """

    chapter: str
    name: str
    stages: tuple
    short: tuple
    data: dict[str, dict]
    build: Callable
    train: Callable
    score: Callable
    weights: bool = True

    def load(self):
        """The data sets by role."""
        return {role: data.load(**how) for role, how in self.data.items()}

    def fingerprints(self):
        """Of what decides the weights, and of what decides their scores, as a dict.

        Neither needs the data: a data set counts by its published files.
        """
        known = {role: data.identity(**how) for role, how in self.data.items()}
        readers = [data.reader(how["name"]) for how in self.data.values()]
        reading = data.stack, readers
        made = self.stages, self.build, self.train, known, reading
        return {
            "training": fingerprint(*made),
            "scores": fingerprint(self.score, known, reading),
        }


@dataclass
class Scores:
    """What a network was scored with.

    numbers: name -> score. details: what the page shows of it, as plain values, for
    instance a confusion matrix for each image.
    """

    numbers: dict[str, float]
    details: dict = field(default_factory=dict)


@dataclass
class Record:
    """What is kept of a run beside its weights; the file is its JSON."""

    chapter: str
    run: str
    date: str  # YYYY-MM-DD
    device: str
    versions: dict
    profile: str
    data: dict  # name -> source
    recipes: list  # of the stages, as text
    steps: int
    seconds: float
    parameters: int
    first_losses: list  # of the first stage
    losses: list  # [step, mean loss since the last point]
    validation: list  # [step, score]
    numbers: dict
    details: dict
    fingerprints: dict
    weights: dict  # sha256 and bytes of the file; empty if there is none

    @property
    def minutes(self):
        return self.seconds / 60

    def history(self):
        """The losses and scores as a `History`, for `utils.plotting.curves`."""
        losses, done = [], 0
        for step, loss in self.losses:
            losses += [loss] * (step - done)
            done = step
        return training.History(losses, self.validation, self.seconds)

    def provenance(self):
        """One line: when, on what, how far, how long."""
        day = date.fromisoformat(self.date)
        return (
            f"trained on {day.day} {day:%B %Y} on {self.device}, {self.steps:,} steps "
            f"in {self.minutes:.0f} minutes"
        )


class Stale(Exception):
    """A record that does not belong to the code that stands."""


def results():
    """The folder of the records: results/ in the book."""
    return runtime.root() / "results"


def files(run):
    """Record and weights of a run, whether they are there or not."""
    folder = results() / run.chapter
    return folder / f"{run.name}.json", folder / f"{run.name}.safetensors"


def obtain(run, anew="", sets=None):
    """The trained network of a run, in eval mode, and its `Record`.

    Both come from results/ if the real data are at hand and the record belongs to the
    code. Otherwise the network is trained here; a training that was interrupted goes
    on, and one that is finished is read back from runs/. anew, and the variable
    SEGBOOK_TRAIN: the name of a run to train here all the same, or "all".
    sets: data sets by role, if they are loaded already.
    """
    sets = sets or run.load()
    reason = obstacle(run, sets, anew)
    if reason is None:
        record = read(run)
        print(f"Run {run.name}: {record.provenance()}; read from results/.")
        return weights_into(run, record), record
    print(f"Run {run.name}: trained here, {reason}.")
    return made_here(run, sets)


def obtain_records(experiment, anew="", sets=None):
    """The `Record` of each run of an experiment, {key: run} -> {key: record}.

    As `obtain`, without the networks, and with one line and one progress bar for all.
    anew can also name the experiment.
    """
    first = next(iter(experiment.values()))
    sets = sets or first.load()
    reasons = {key: obstacle(run, sets, anew) for key, run in experiment.items()}
    here = [key for key, reason in reasons.items() if reason is not None]
    records = {k: read(run) for k, run in experiment.items() if reasons[k] is None}
    if records:
        minutes = sum(record.minutes for record in records.values())
        print(f"{len(records)} runs, {minutes:.0f} minutes: read from results/.")
    for reason, count in Counter(reasons[key] for key in here).items():
        print(f"{count} runs: trained here, {reason}.")
    for key in tqdm(here, disable=not here):
        with capture_output():  # one progress bar for all is enough
            _, records[key] = made_here(experiment[key], sets)
    return {key: records[key] for key in experiment}


def made_here(run, sets):
    model, history = trained(run, sets)
    return model, describe(run, sets, model, history, run.score(model, sets))


def obstacle(run, sets, anew=""):
    """Why the record of a run is of no use here; None if it is."""
    names = {run.name, run.name.partition("-")[0], "all"}
    if names & {anew, os.environ.get("SEGBOOK_TRAIN", "")}:
        return "as it was asked for"
    if runtime.profile() == "smoke":
        return "since smoke only checks that everything runs"
    if is_drawn(sets):
        return "since the data are the embedded stand-in"
    if is_changed(sets):
        return "since the local files are not those published"
    try:
        check(run)
    except FileNotFoundError:
        return "since the book has no record of it"
    except Stale as error:
        return f"since {error}"
    return None


def is_drawn(sets):
    return any(one.source == "sample" for one in sets.values())


def is_changed(sets):
    """Whether a set came from a local folder with other files than the published."""
    used = data.sources_used()
    return any(data.CHANGED in used.get(one.name, "") for one in sets.values())


def check(run):
    """Raises Stale if the record of a run is not of the code that stands, and
    FileNotFoundError if there is none."""
    recorded, now = read(run).fingerprints, run.fingerprints()
    changed = [part for part, mark in now.items() if recorded.get(part) != mark]
    if changed:
        raise Stale(
            f"the record in results/{run.chapter}/{run.name}.json is of another "
            f"recipe, other data or other code ({' and '.join(changed)} changed)"
        )


def read(run):
    """The record of a run. A file that is no record: ValueError, with what to do."""
    file, _ = files(run)
    raw = file.read_bytes()
    try:
        return Record(**json.loads(raw))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} is no record ({error}): fetch it again with git checkout"
        ) from error


def weights_into(run, record):
    """The network of a run with its recorded weights, in eval mode, on the device.

    Weights that are missing, or not those of the record, by a single bit: ValueError.
    """
    _, file = files(run)
    if not file.is_file() or sha256(file) != record.weights["sha256"]:
        raise ValueError(
            f"{file} does not hold the weights of its record (no such file, or another "
            "SHA-256): fetch it again with git checkout"
        )
    from safetensors.torch import load_file  # only where there is something to load

    model = run.build(run.stages[0])
    model.load_state_dict(load_file(file))
    return model.to(runtime.device()).eval()


def sha256(file):
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def recipes(run, sets):
    """The stages that these data are worth."""
    brief = runtime.profile() == "smoke" or is_drawn(sets)
    return run.short if brief else run.stages


def trained(run, sets):
    """Trains the stages one after the other; the network and its whole `History`."""
    whole, stages = training.History(), recipes(run, sets)
    sources = [one.source for one in sets.values()]
    for number, recipe in enumerate(stages, start=1):
        runtime.seed(getattr(recipe, "seed", 0))
        if number == 1:
            model = run.build(recipe)
        # Of the stages so far only: one more leaves those that are finished.
        so_far = replace(run, stages=stages[:number]).fingerprints()["training"]
        done = path(run.chapter, f"{run.name}-{number}", so_far, sources)
        history = run.train(model, recipe, sets, done)
        whole.scores += [(whole.steps + step, score) for step, score in history.scores]
        whole.losses += history.losses
        whole.seconds += history.seconds
    return model, whole


def describe(run, sets, model, history, scores):
    """The `Record` of a network that was trained here; it has no weights file yet."""
    return Record(
        chapter=run.chapter,
        run=run.name,
        date=date.today().isoformat(),
        device=runtime.device_name(),
        versions=runtime.versions(),
        profile=runtime.profile(),
        data={one.name: one.source for one in sets.values()},
        recipes=[repr(recipe) for recipe in recipes(run, sets)],
        steps=history.steps,
        seconds=round(history.seconds, 1),
        parameters=sum(p.numel() for p in model.parameters()),
        first_losses=history.losses[:FIRST],
        losses=thinned(history.losses),
        validation=[list(pair) for pair in history.scores],
        numbers=scores.numbers,
        details=scores.details,
        fingerprints=run.fingerprints(),
        weights={},
    )


def thinned(losses, points=CURVE):
    """At most `points` pairs [step, mean of the losses since the last pair]."""
    size = max(1, -(-len(losses) // points))
    parts = [losses[k : k + size] for k in range(0, len(losses), size)]
    ends = (min(size * (k + 1), len(losses)) for k in range(len(parts)))
    return [[end, round(sum(p) / len(p), 5)] for end, p in zip(ends, parts)]


def rounded(state):
    """Weights as they are kept: float16, but what has one dimension or none, as biases
    and batch normalisation, float32; counters stay whole numbers."""
    return {k: v.cpu().contiguous().to(kept_as(v)) for k, v in state.items()}


def kept_as(value):
    if not value.is_floating_point():
        return value.dtype
    return torch.float16 if value.ndim > 1 else torch.float32


def keep(run, sets, model, history):
    """Writes record and weights of a run into results/; returns the `Record`.

    The scores are those of the weights as they are kept, rounded. Data that are not
    the published ones, by which a record names them: ValueError.
    """
    if is_changed(sets):
        raise ValueError(
            "a record is of the published files, and some local ones are others: remove "
            "their folder, and they are fetched again"
        )
    from safetensors.torch import save

    file, weights = files(run)
    state = rounded(model.state_dict())
    model.load_state_dict(state)
    record = describe(run, sets, model.eval(), history, run.score(model, sets))
    if run.weights:
        with replacing(weights) as new:
            new.write(save(state))
        record.weights = {"sha256": sha256(weights), "bytes": weights.stat().st_size}
    write(record, file)
    return record


def write(record, file):
    """In one step: the file holds the old record or the new one, never a part."""
    values = {one.name: getattr(record, one.name) for one in fields(record)}
    with replacing(file) as new:
        new.write(f"{as_json(values)}\n".encode())


def as_json(values):
    """JSON with one line for each member, so that a change of one is a line."""
    lines = (f" {json.dumps(k)}: {json.dumps(v)}" for k, v in values.items())
    return "{\n" + ",\n".join(lines) + "\n}"
