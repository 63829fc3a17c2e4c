"""Runs and their records: what a page gets, and when a record no longer holds."""

import errno
import io
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

from utils import chapters, checkpoints, data, metrics, record, runs, runtime, training


@dataclass(frozen=True)
class Recipe:
    steps: int = 30
    rate: float = 0.05
    seed: int = 0


def build(recipe):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )


def learn(model, recipe, sets, checkpoint):
    images = sets["train"].images.float() / 255

    def sample(generator):
        i = torch.randint(len(images), (2,), generator=generator)
        return images[i], sets["train"].labels[i].long()

    optimizer = torch.optim.SGD(model.parameters(), recipe.rate)
    return training.fit(
        model, sample, F.cross_entropy, optimizer, recipe.steps, seed=recipe.seed,
        checkpoint=checkpoint, progress=False,
    )  # fmt: skip


def score(model, sets):
    with torch.no_grad():
        found = model(sets["test"].images.float() / 255).argmax(1)
    right = (found == sets["test"].labels).float().mean().item()
    return runs.Scores({"test, share right": right}, {"pixels": found.numel()})


def score_by_another_way(model, sets):
    return score(model, sets)


def score_otherwise(model, sets):
    return runs.Scores({"test, share right": 0.25}, {})


def learn_by_another_way(model, recipe, sets, checkpoint):
    assert checkpoint.parent.is_dir()  # also where nobody keeps it
    return learn(model, recipe, sets, checkpoint)


SETS = {
    part: dict(name="membranes", split=part, size=24) for part in ("train", "test")
}
RUN = runs.Run(
    "unet", "tiny", (Recipe(),), (Recipe(steps=3),), SETS, build, learn, score
)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """An empty results/ and runs/, the CPU, and small "real" data."""
    monkeypatch.setenv("SEGBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SEGBOOK_PROFILE", "cpu")
    monkeypatch.delenv("SEGBOOK_TRAIN", raising=False)
    monkeypatch.setattr(runs, "results", lambda: tmp_path / "results")
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(data, "load", load)


def load(name, split, size, source="local"):
    images = torch.rand(6, 1, size, size, generator=torch.Generator().manual_seed(5))
    images = (255 * images).to(torch.uint8)
    labels = (images[:, 0] > 128).to(torch.uint8)
    return data.Dataset(
        name, split, images, labels, ("a", "b"), ((0, 0, 0),) * 2, None, "terms",
        "Somebody, a paper", source,
    )  # fmt: skip


def never(*_):
    raise AssertionError("a recorded run was trained again")


@pytest.fixture
def kept():
    return record.record(RUN)


# What a page gets


def test_a_page_reads_the_record_and_trains_nothing(kept, capsys):
    model, found = runs.obtain(RUN, sets=RUN.load())
    assert found == kept and not model.training
    assert kept.provenance() in capsys.readouterr().out
    files = {path.name for path in runs.results().glob("unet/*")}
    assert files == {"tiny.json", "tiny.safetensors", "tiny.md"}


def test_recorded_scores_are_those_of_the_recorded_weights(kept):
    model, found = runs.obtain(RUN)
    assert score(model, RUN.load()).numbers == found.numbers
    state = model.state_dict()
    assert torch.equal(state["0.weight"].half().float(), state["0.weight"])


def test_what_is_rounded_and_what_is_not():
    model = build(Recipe())
    kinds = {k: v.dtype for k, v in runs.rounded(model.state_dict()).items()}
    assert {kinds["0.weight"], kinds["3.weight"]} == {torch.float16}
    one_dimension = "1.weight", "1.running_var", "0.bias"
    assert {kinds[name] for name in one_dimension} == {torch.float32}
    assert kinds["1.num_batches_tracked"] == torch.int64


def test_without_a_record_it_trains_and_the_second_time_reads_back(capsys, monkeypatch):
    first, found = runs.obtain(RUN)
    assert "no record" in capsys.readouterr().out
    assert found.steps == 30 and len(found.first_losses) == runs.FIRST

    monkeypatch.setattr(torch.optim.SGD, "step", never)
    again, _ = runs.obtain(RUN)
    for one, other in zip(first.state_dict().values(), again.state_dict().values()):
        assert torch.equal(one, other)


@pytest.mark.parametrize("switch", ["tiny", "all"])
def test_switch_and_variable_train_anew(kept, switch, monkeypatch, capsys):
    runs.obtain(RUN, anew=switch)
    assert "asked for" in capsys.readouterr().out
    monkeypatch.setenv("SEGBOOK_TRAIN", switch)
    runs.obtain(RUN)
    assert "asked for" in capsys.readouterr().out
    monkeypatch.setenv("SEGBOOK_TRAIN", "another")
    runs.obtain(RUN)
    assert "read from results/" in capsys.readouterr().out


def test_files_other_than_the_published_make_and_use_no_record(
    kept, monkeypatch, capsys
):
    used = {"membranes": f"archive + {data.CHANGED}"}
    monkeypatch.setattr(data, "sources_used", lambda: used)
    sets = RUN.load()
    with pytest.raises(ValueError, match="of the published files"):
        record.record(RUN)
    assert runs.read(RUN) == kept
    runs.obtain(RUN, sets=sets)
    assert "trained here, since the local files" in capsys.readouterr().out


def test_the_stand_in_and_smoke_never_use_a_record(kept, monkeypatch, capsys):
    drawn = {role: load(**how, source="sample") for role, how in SETS.items()}
    _, found = runs.obtain(RUN, sets=drawn)
    assert found.steps == 3 and "stand-in" in capsys.readouterr().out
    monkeypatch.setenv("SEGBOOK_PROFILE", "smoke")
    _, found = runs.obtain(RUN)
    assert found.steps == 3 and "smoke" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        dict(stages=(Recipe(rate=0.06),)),
        dict(stages=(Recipe(), Recipe(seed=1))),
        dict(build=lambda recipe: build(recipe)),
        dict(train=learn_by_another_way),
        dict(data={part: how | {"size": 25} for part, how in SETS.items()}),
        dict(data={**SETS, "test": dict(name="membranes", split="val", size=24)}),
        dict(score=score_by_another_way),
    ],
)
def test_anything_that_decides_makes_a_record_stale(kept, change):
    changed = replace(RUN, **change)
    with pytest.raises(runs.Stale, match="changed"):
        runs.check(changed)
    only_scores = set(change) == {"score"}
    same = changed.fingerprints()["training"] == kept.fingerprints["training"]
    assert same == only_scores
    runs.check(RUN)


def test_fingerprints_need_no_data(monkeypatch):
    before = RUN.fingerprints()
    monkeypatch.setattr(data, "load", never)
    monkeypatch.setattr(data, "data_root", never)
    assert RUN.fingerprints() == before


def test_another_archive_is_other_data(monkeypatch):
    from utils.data import membranes

    before = RUN.fingerprints()
    other = replace(membranes.archive, sha256="0" * 64)
    monkeypatch.setattr(membranes, "archive", other)
    after = RUN.fingerprints()
    assert all(before[part] != after[part] for part in before)


def test_a_flipped_bit_in_the_weights_is_noticed(kept):
    _, file = runs.files(RUN)
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match="git checkout"):
        runs.obtain(RUN)


def test_missing_weights_say_what_to_do(kept):
    runs.files(RUN)[1].unlink()
    with pytest.raises(ValueError, match="tiny.safetensors.*git checkout"):
        runs.obtain(RUN)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"chapter": "x"}', b"\xff\xfe{"])
def test_a_broken_record_says_what_to_do(kept, raw):
    file, _ = runs.files(RUN)
    file.write_bytes(raw)
    with pytest.raises(ValueError, match="tiny.json is no record.*git checkout"):
        runs.obtain(RUN)


def test_a_damaged_checkpoint_is_not_taken_for_a_finished_training():
    runs.obtain(RUN)
    (file,) = (runtime.runs() / "unet").iterdir()
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=f"{file.name} is damaged.*: delete it"):
        runs.obtain(RUN)
    file.unlink()
    runs.obtain(RUN)


# The chapter of the U-Net chooses weights on validation slices


@pytest.fixture
def unet(monkeypatch):
    """The chapter, loaded anew: a test may change what its functions call."""
    monkeypatch.setenv("SEGBOOK_PROFILE", "cpu")
    return chapters.load("unet")


def test_what_chooses_the_weights_of_the_unet_counts(unet, monkeypatch):
    before = unet.MAIN.fingerprints()
    other = {**unet.MAIN.data, "val": unet.MAIN.data["test"]}
    after = replace(unet.MAIN, data=other).fingerprints()
    assert after["training"] != before["training"]

    with monkeypatch.context() as patch:
        patch.setattr(unet, "membrane_dice", lambda model, dataset: 0.0)
        after = unet.MAIN.fingerprints()
    assert after["training"] != before["training"]
    assert after["scores"] == before["scores"]
    monkeypatch.setattr(metrics, "dice", lambda table: table)
    after = unet.MAIN.fingerprints()
    assert all(after[part] != before[part] for part in before)


def test_checkpoints_of_the_unet_know_its_validation_labels(unet):
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    other = labels.clone()
    other[1, 4, 4] = 1
    names = {runs.path("unet", "small", unet.learn, one) for one in (labels, other)}
    assert len(names) == 2


# Stages


def test_a_stage_goes_on_from_the_one_before(monkeypatch):
    two = replace(RUN, stages=(Recipe(), Recipe(seed=1)))
    model, whole = runs.trained(two, two.load())
    assert whole.steps == 60

    by_hand = build(None)
    runtime.seed(0)
    by_hand = build(None)
    learn(by_hand, Recipe(), two.load(), None)
    runtime.seed(1)
    last = learn(by_hand, Recipe(seed=1), two.load(), None)
    assert whole.losses[30:] == last.losses

    # One more stage leaves the finished ones as they are.
    trained = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda *a, **k: (trained.append(1), step(*a, **k))[1]
    )
    three = replace(two, stages=(*two.stages, Recipe(seed=2, steps=7)))
    _, whole = runs.trained(three, three.load())
    assert whole.steps == 67 and len(trained) == 7


def test_a_thinned_curve_keeps_ends_and_means():
    losses = [float(k) for k in range(1000)]
    points = runs.thinned(losses)
    assert len(points) <= runs.CURVE and points[-1][0] == 1000
    assert points[0] == [3, 1.0]
    assert runs.thinned([2.0]) == [[1, 2.0]]
    history = replace(record.record(RUN), losses=points).history()
    assert history.steps == 1000 and history.losses[:3] == [1.0] * 3


# Restamps


def test_a_restamp_takes_the_same_numbers_from_other_code(kept):
    changed = replace(RUN, train=learn_by_another_way)
    assert "training changed" in record.restamp(changed)
    runs.check(changed)
    assert runs.read(changed).numbers == kept.numbers
    assert "nothing to do" in record.restamp(changed)


def test_a_restamp_refuses_other_losses(kept):
    file, _ = runs.files(RUN)
    before = file.read_bytes()
    for change in (dict(rate=0.06), dict(seed=3), dict(steps=12)):
        with pytest.raises(record.Refused, match="not restamped"):
            record.restamp(replace(RUN, stages=(Recipe(**change),)))
    assert file.read_bytes() == before


def test_a_restamp_of_the_training_leaves_the_scores_alone(kept, monkeypatch):
    monkeypatch.setattr(runs, "weights_into", never)
    changed = replace(RUN, build=lambda recipe: build(recipe))
    assert record.restamp(changed) == "restamped (training changed)"
    found = runs.read(changed)
    assert found.numbers == kept.numbers and found.details == kept.details


def test_after_a_change_of_the_scores_the_weights_are_scored_again(kept, monkeypatch):
    changed = replace(RUN, score=score_otherwise)
    monkeypatch.setattr(torch.optim.SGD, "step", never)
    assert "scores changed" in record.restamp(changed)
    found = runs.read(changed)
    assert found.numbers == {"test, share right": 0.25}
    assert found.weights == kept.weights
    card = runs.files(RUN)[0].with_suffix(".md").read_text()
    assert "0.250" in card and "Somebody, a paper" in card and "terms" in card


def test_a_run_is_reproduced_from_nothing(kept, capsys):
    assert record.reproduce(RUN) == 0
    assert "recorded" in capsys.readouterr().out


def test_records_are_made_from_real_data_only(monkeypatch):
    monkeypatch.setattr(data, "load", lambda **how: load(**how, source="sample"))
    with pytest.raises(record.Refused, match="SEGBOOK_DATA"):
        record.record(RUN)
    assert not runs.results().exists()


def test_a_full_disk_keeps_the_old_record(kept, monkeypatch, capsys):
    files = {path: path.read_bytes() for path in runs.results().glob("unet/*")}

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record, "find", lambda *_: RUN)
    monkeypatch.setattr(checkpoints, "open", Full, raising=False)
    assert record.main(["record", "unet", "tiny"]) == 1
    assert "tiny.safetensors cannot be written, the disk is full" in (
        capsys.readouterr().out
    )
    assert {p: p.read_bytes() for p in runs.results().glob("unet/*")} == files


@pytest.mark.parametrize(
    "error, told",
    [
        (KeyboardInterrupt(), "goes on from there"),
        (FloatingPointError("the loss is no longer finite: lower"), "finite: lower"),
    ],
)
def test_a_training_that_stops_gives_a_message(error, told, monkeypatch, capsys):
    def trained(*_):
        raise error

    monkeypatch.setattr(record, "find", lambda *_: RUN)
    monkeypatch.setattr(runs, "trained", trained)
    assert record.main(["record", "unet", "tiny"]) == 1
    assert told in capsys.readouterr().out
    assert not runs.results().exists()


def test_the_command_names_what_there_is(capsys):
    assert record.main(["record", "unet", "nothing"]) == 1
    assert "main" in capsys.readouterr().out
    assert record.main(["record", "nowhere", "main"]) == 1
    assert "no chapter" in capsys.readouterr().out


# Experiments: many runs, one line


TWO = {seed: replace(RUN, name=f"luck-{seed}", stages=(Recipe(seed=seed),),
                     weights=False) for seed in (0, 1)}  # fmt: skip


def test_an_experiment_is_read_whole_and_says_so_in_one_line(capsys, monkeypatch):
    made = {seed: record.record(run) for seed, run in TWO.items()}
    assert made[0].weights == {} and made[0].numbers
    files = {path.name for path in runs.results().glob("unet/*")}
    assert files == {"luck-0.json", "luck-1.json"}
    monkeypatch.setattr(runs, "trained", never)
    assert runs.obtain_records(TWO, sets=RUN.load()) == made
    assert capsys.readouterr().out.count("\n") == 1


def test_what_an_experiment_lacks_is_trained_here(capsys):
    kept = record.record(TWO[0])
    found = runs.obtain_records(TWO, sets=RUN.load())
    assert list(found) == [0, 1] and found[0] == kept
    assert found[1].steps == 30 and found[1].numbers
    said = capsys.readouterr().out
    assert "1 runs, 0 minutes: read" in said and "1 runs: trained here" in said


@pytest.mark.parametrize("switch", ["luck", "luck-1", "all"])
def test_an_experiment_or_one_of_its_runs_is_trained_anew(switch, capsys):
    for run in TWO.values():
        record.record(run)
    runs.obtain_records(TWO, switch, RUN.load())
    count = 1 if switch == "luck-1" else 2
    assert f"{count} runs: trained here, as it was asked" in capsys.readouterr().out


def test_scores_without_weights_are_not_restamped():
    record.record(TWO[0])
    with pytest.raises(record.Refused, match="weights"):
        record.restamp(replace(TWO[0], score=score_otherwise))


# The records of the book


def committed():
    return sorted(
        (path.parent.name, path.stem) for path in (ROOT / "results").glob("*/*.json")
    )


@pytest.fixture
def the_book(monkeypatch):
    monkeypatch.setattr(runs, "results", lambda: ROOT / "results")


@pytest.mark.parametrize("chapter, name", committed())
def test_a_record_of_the_book_belongs_to_the_code(chapter, name, the_book):
    assert record.state(chapter, name) == "fresh", (
        f"run: make restamp CHAPTER={chapter} RUN={name}"
    )


@pytest.mark.parametrize("chapter, name", committed())
def test_a_record_of_the_book_is_whole(chapter, name, the_book):
    run = record.find(chapter, name)
    found = runs.read(run)
    assert (found.chapter, found.run) == (chapter, name)
    assert found.profile != "smoke" and "sample" not in found.data.values()
    assert len(found.first_losses) == runs.FIRST and found.steps == found.losses[-1][0]
    if not run.weights:
        assert found.weights == {}
        return
    runs.weights_into(run, found)
    card = runs.files(run)[0].with_suffix(".md").read_text(encoding="utf-8")
    assert found.weights["sha256"] in card
    for label, value in found.numbers.items():
        assert f"| {label} | {value:.3f} |" in card


def test_every_record_of_the_book_is_used():
    pending = (ROOT / "results/pending.txt").read_text(encoding="utf-8").split("\n")
    pending = {tuple(line.split()) for line in pending if line and line[0] != "#"}
    for chapter, name in committed():
        if (chapter, name) not in pending:
            text = (ROOT / f"chapters/{chapter}.py").read_text(encoding="utf-8")
            experiment, hyphen, _ = name.partition("-")
            named = f'"{experiment}-' if hyphen else f'name="{name}"'
            assert "runs.obtain" in text and named in text, (chapter, name)
    assert pending <= set(committed()), "pending.txt names what is not there"


def test_results_stay_small():
    sizes = [p.stat().st_size for p in (ROOT / "results").rglob("*") if p.is_file()]
    assert sum(sizes) < 40e6
