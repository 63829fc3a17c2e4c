"""Makes, repeats and renews the records of runs: python -m utils.record.

    record unet main      train a run, or finish it, and write it into results/
    reproduce unet main   train it anew in a folder of its own and print both scores
    restamp unet main     the code changed, the numbers should not have: see `restamp`
    check                 say which records belong to the code that stands

Every command but the last needs the real data.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from utils import chapters, data, runs, runtime, training
from utils.checkpoints import replacing

CLOSE = 1e-4  # how far losses or scores may differ that count as the same


class Refused(Exception):
    """A record that may not be written, with the reason."""


def runs_of(chapter):
    """The runs that a chapter defines in its cells tagged `model`, by name: single
    ones, and those of an experiment, a dict."""
    found = []
    for defined in vars(chapters.load(chapter)).values():
        found += defined.values() if isinstance(defined, dict) else [defined]
    return {run.name: run for run in found if isinstance(run, runs.Run)}


def find(chapter, name):
    known = runs_of(chapter)
    if name not in known:
        names = ", ".join(known) or "none"
        raise ValueError(f"{chapter} has no run {name!r}; it has: {names}")
    return known[name]


def real_data(run):
    sets = run.load()
    if runs.is_drawn(sets):
        raise Refused(
            "records are made from the real data, and here is only the embedded "
            "stand-in: set SEGBOOK_DATA to the folder that holds them"
        )
    return sets


def record(run):
    """Trains a run, or reads it back when it is finished, and writes its record."""
    sets = real_data(run)
    model, history = runs.trained(run, sets)
    made = runs.keep(run, sets, model, history)
    write_card(run, made, sets)
    return made


def reproduce(run):
    """Trains a run anew, whatever is finished; prints old and new scores and returns
    the largest difference."""
    kept, sets = runs.read(run), real_data(run)
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("SEGBOOK_RUNS", "")  # empty is as if it were not set
        os.environ["SEGBOOK_RUNS"] = folder
        try:
            model, _ = runs.trained(run, sets)
        finally:
            os.environ["SEGBOOK_RUNS"] = before
    model.load_state_dict(runs.rounded(model.state_dict()))
    found = run.score(model, sets).numbers
    for name, value in kept.numbers.items():
        print(f"{name}: recorded {value:.4f}, now {found[name]:.4f}")
    return max(abs(found[name] - value) for name, value in kept.numbers.items())


def restamp(run):
    """Gives a record the fingerprints of the code that stands, if it deserves them.

    If what decides the weights changed, the first 20 steps are trained again, and must
    give the recorded losses; else Refused. If what decides the scores changed, the
    recorded weights are scored again, and the new scores are written.
    """
    kept, sets, now = runs.read(run), real_data(run), run.fingerprints()
    changed = {part for part in now if kept.fingerprints.get(part) != now[part]}
    if not changed:
        return "nothing to do: the record belongs to the code that stands"
    if "training" in changed:
        compare("losses of the first steps", kept.first_losses, first_losses(run, sets))
    if "scores" in changed and not kept.weights:
        raise Refused("not restamped: other scores need the weights, and it has none")
    if "scores" in changed:
        scores = run.score(runs.weights_into(run, kept), sets)
        kept.numbers, kept.details = scores.numbers, scores.details
    kept.fingerprints = now
    file, _ = runs.files(run)
    runs.write(kept, file)
    write_card(run, kept, sets)
    return f"restamped ({' and '.join(sorted(changed))} changed)"


def compare(what, old, new):
    """Refused unless the two rows of numbers agree to CLOSE."""
    if len(old) != len(new):
        raise Refused(f"not restamped: {len(old)} {what} are recorded, not {len(new)}")
    apart = max(abs(a - b) for a, b in zip(old, new))
    if not apart <= CLOSE:
        raise Refused(
            f"not restamped: the {what} differ by up to {apart:.2g}, more than "
            f"{CLOSE}. The numbers changed, so the run must be made again"
        )


class Enough(Exception):
    """Stops a training of which the first steps are wanted."""


def first_losses(run, sets):
    """The losses of the first steps of a run, trained here for no longer than that."""
    found = []

    def note(step, loss):
        found.append(loss)
        if step == runs.FIRST:
            raise Enough

    recipe = run.stages[0]
    runtime.seed(getattr(recipe, "seed", 0))
    training.after_step.append(note)
    try:
        with tempfile.TemporaryDirectory() as place:  # a checkpoint that nobody needs
            run.train(run.build(recipe), recipe, sets, Path(place, "first.pt"))
    except Enough:
        pass
    finally:
        training.after_step.remove(note)
    return found


def write_card(run, made, sets):
    """The card of a weights file, beside it: what it is, what it may be used for."""
    if not made.weights:
        return
    file, weights = runs.files(run)
    used = {one.name: one for one in sets.values()}.values()
    lines = [
        f"# {run.chapter}, run {run.name}",
        "",
        f"Weights: `{weights.name}`, {made.parameters:,} parameters, "
        f"{made.weights['bytes'] / 1e6:.1f} MB, SHA-256 `{made.weights['sha256']}`.",
        "",
        f"Made for the chapter `{run.chapter}` of the book, to be read beside it: "
        f"{made.provenance()}.",
        "",
        "| score | value |",
        "| --- | --- |",
        *(f"| {name} | {value:.3f} |" for name, value in made.numbers.items()),
        "",
        *(f"Data: {one.name}. {one.citation}. {one.licence}." for one in used),
        "",
        "The weights were learnt from these data and stand under their terms: for "
        "research and teaching. They are a lesson's, not a product's: not for driving, "
        "not for diagnosis, not for any decision about people.",
        "",
    ]
    with replacing(file.with_suffix(".md")) as card:
        card.write("\n".join(lines).encode())


def kept_runs():
    """(chapter, run) of every record in results/."""
    return sorted((f.parent.name, f.stem) for f in runs.results().glob("*/*.json"))


def state(chapter, name):
    """"fresh", or what is wrong with a record."""
    try:
        runs.check(find(chapter, name))
    except (runs.Stale, ValueError) as error:
        return str(error)
    return "fresh"


# --- the command


def main(arguments=None):
    """Returns the exit status."""
    options = parse(arguments)
    if options.command == "check":
        states = {pair: state(*pair) for pair in kept_runs()}
        for (chapter, name), found in states.items():
            print(f"{chapter} {name}: {found}")
        return int(any(found != "fresh" for found in states.values()))
    if not (options.chapter and options.run):
        print(f"say which: python -m utils.record {options.command} unet main")
        return 2
    try:
        return COMMANDS[options.command](find(options.chapter, options.run))
    except (Refused, ValueError, OSError, FloatingPointError, data.DataError) as error:
        print(error)
        return 1
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. What is finished lies in {runtime.runs()}: the same "
            "command goes on from there."
        )
        return 1


def say_record(run):
    made = record(run)
    print(f"{made.chapter} {made.run}: {made.provenance()}")
    for name, value in made.numbers.items():
        print(f"{name}: {value:.4f}")
    return 0


def say_reproduction(run):
    apart = reproduce(run)
    print(f"largest difference {apart:.4f}")
    return 0


def say_restamp(run):
    print(restamp(run))
    return 0


COMMANDS = {
    "record": say_record, "reproduce": say_reproduction, "restamp": say_restamp,
    "check": None,
}  # fmt: skip


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m utils.record", description="Records of runs, see the top."
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("chapter", nargs="?")
    parser.add_argument("run", nargs="?")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
