"""The training loop: it learns, resumes to the same numbers, and keeps the best."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils import runs, runtime, training
from utils.checkpoints import load_weights, save_weights
from utils.data.augment import Augment
from utils.training import fit, poly


class Interrupted(Exception):
    pass


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(8, 2, 1)
    )


def sample(generator):
    images = torch.rand(4, 1, 12, 12, generator=generator)
    return images, (images[:, 0] > 0.5).long()


def accuracy(model):
    images, labels = sample(torch.Generator().manual_seed(99))
    return (model(images).argmax(1) == labels).float().mean()


def train(model, steps=40, rate=0.05, draw=sample, evaluate=accuracy, **settings):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    settings = dict(every=10, warmup=3, seed=1, progress=False) | settings
    return fit(
        model, draw, F.cross_entropy, optimizer, steps, evaluate=evaluate, **settings
    )


def test_it_learns():
    model = network()
    history = train(model, steps=120)
    assert history.losses[-1] < history.losses[0] / 2
    assert history.best[1] > 0.9
    assert [step for step, _ in history.scores] == list(range(10, 121, 10))
    assert not model.training


def test_same_seed_same_numbers():
    first, again = train(network()), train(network())
    assert first.losses == again.losses and first.scores == again.scores
    assert first.losses != train(network(), seed=2).losses


@pytest.mark.parametrize("stop_after", [1, 10, 27])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, stop_after):
    whole = network()
    expected = train(whole, clip=1.0)
    batches = 0

    def draw(generator):
        nonlocal batches
        batches += 1
        if batches > stop_after:
            raise Interrupted
        return sample(generator)

    checkpoint = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        train(network(), draw=draw, clip=1.0, checkpoint=checkpoint)
    torch.manual_seed(1234)  # whatever the reader did in between
    resumed = network()
    history = train(resumed, clip=1.0, checkpoint=checkpoint)
    assert history.losses == expected.losses
    assert history.scores == expected.scores
    for left, right in zip(whole.state_dict().values(), resumed.state_dict().values()):
        assert torch.equal(left, right)


def test_a_finished_run_is_read_back_and_not_trained_again(tmp_path):
    checkpoint = tmp_path / "run.pt"
    first = network()
    expected = train(first, checkpoint=checkpoint)

    def never(*_):
        raise AssertionError("a finished run was trained again")

    again = network()
    history = train(again, draw=never, evaluate=never, checkpoint=checkpoint)
    assert history.losses == expected.losses and history.seconds == expected.seconds
    images, _ = sample(torch.Generator().manual_seed(0))
    assert torch.equal(first(images), again(images))


def test_the_weights_with_the_best_score_are_kept():
    scores = iter([0.1, 0.9, 0.3, 0.9])
    seen = []

    def evaluate(model):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(scores)

    model = network()
    history = train(model, evaluate=evaluate)
    assert history.best == (20, 0.9)
    assert all(torch.equal(v, seen[1][k]) for k, v in model.state_dict().items())


def test_evaluation_does_not_change_the_training():
    assert train(network(), every=5).losses == train(network(), every=40).losses


def test_rates_of_the_groups_keep_their_ratio_and_fall_to_zero():
    factors = [poly(100, 0.9, warmup=4)(step) for step in range(101)]
    assert factors[0] == pytest.approx(0.2)
    assert factors[50] == pytest.approx(0.5**0.9)
    assert factors[100] == 0
    model = network()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 1}],
        lr=0.1,
    )
    fit(model, sample, F.cross_entropy, optimizer, 5, progress=False)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [0, 0]


def test_clipping_bounds_the_step():
    model = network()
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    fit(model, sample, F.cross_entropy, optimizer, 1, clip=1e-3, progress=False)
    moved = nn.utils.parameters_to_vector(model.parameters()) - before
    assert 0 < moved.norm() <= 1.01e-3


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    checkpoint = tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        fit(
            model,
            sample,
            lambda logits, labels: logits.mean() * float("nan"),
            optimizer,
            3,
            progress=False,
            checkpoint=checkpoint,
        )
    assert not checkpoint.exists()


@pytest.mark.parametrize("first", [float("nan"), float("-inf")])
def test_a_score_that_is_no_number_is_never_the_best(first):
    scores = iter([first, 0.5, 0.9, 0.7])
    history = train(network(), evaluate=lambda model: next(scores))
    assert history.best == (30, 0.9)

    nothing = train(network(), evaluate=lambda model: float("nan"))
    assert nothing.best is None  # and the last weights stay


def test_exploded_weights_are_not_saved_and_the_file_is_named(tmp_path):
    """The loss is still finite when the last step of a round breaks the weights."""
    checkpoint, steps = tmp_path / "run.pt", 0

    def explode(logits, labels):
        nonlocal steps
        steps += 1
        value = F.cross_entropy(logits, labels)
        return value * torch.tensor(1e38 if steps == 20 else 1.0, requires_grad=True)

    model = network()
    with pytest.raises(FloatingPointError, match="delete .*run.pt"):
        fit(
            model, sample, explode, torch.optim.SGD(model.parameters(), lr=1e6), 40,
            every=10, warmup=25, checkpoint=checkpoint, progress=False,
        )  # fmt: skip
    assert steps == 20
    kept = load_weights(checkpoint)
    assert len(kept["history"]["losses"]) == 16  # saved at each tenth of the steps
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_a_step_that_the_scaler_leaves_out_does_not_count_for_the_schedule():
    """As with float16 on a GPU: an overflow in the third step."""

    class Scaler:
        size, steps = 4.0, 0

        def scale(self, value):
            return value

        def step(self, optimizer):
            self.steps += 1
            if self.steps != 3:
                optimizer.step()

        def update(self):
            self.size /= 2 if self.steps == 3 else 1

        def get_scale(self):
            return self.size

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    run = training._Run(model, optimizer, poly(10), 0, None)
    run.scaler, rates = Scaler(), []
    for _ in range(5):
        run.update(F.cross_entropy(*map(torch.as_tensor, logits_of(model))), None)
        rates.append(optimizer.param_groups[0]["lr"])
    expected = [(1 - k / 10) ** 0.9 for k in (1, 2, 2, 3, 4)]
    assert rates == pytest.approx(expected)


def logits_of(model):
    images, labels = sample(torch.Generator().manual_seed(0))
    return model(images), labels


def test_float16_gets_a_scaler_and_nothing_else_does(monkeypatch):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        monkeypatch.setattr(runtime, "precision", lambda device: dtype)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        run = training._Run(model, optimizer, poly(10), 0, None)
        assert run.scaler.is_enabled() == (dtype == torch.float16)


def test_outputs_and_loss_are_computed_in_the_precision_of_the_device(monkeypatch):
    found = []

    def note(logits, labels):
        found.append(logits.dtype)
        return F.cross_entropy(logits.float(), labels)

    def run():
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return fit(model, sample, note, optimizer, 1, progress=False)

    run()
    monkeypatch.setattr(runtime, "precision", lambda device: torch.bfloat16)
    run()
    assert found == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(warmup=-1), dict(every=-2)])
def test_impossible_numbers_of_steps_are_refused(wrong):
    with pytest.raises(ValueError, match="at least one step"):
        train(network(), **wrong)


def test_a_batch_without_images_is_refused():
    def empty(generator):
        return tuple(part[:0] for part in sample(generator))

    with pytest.raises(ValueError, match="a batch without images"):
        train(network(), draw=empty)


def test_a_folder_that_takes_no_files_is_named_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("no folder")

    def never(generator):
        raise AssertionError("a step was taken")

    with pytest.raises(OSError, match="SEGBOOK_RUNS"):
        train(network(), draw=never, checkpoint=tmp_path / "file" / "unet" / "run.pt")


def test_a_finished_run_is_read_back_from_a_folder_that_takes_no_files(
    tmp_path, monkeypatch
):
    checkpoint = tmp_path / "run.pt"
    expected = train(network(), checkpoint=checkpoint)

    def refuse(folder):
        raise OSError("read-only")

    monkeypatch.setattr(runtime, "check_writable", refuse)
    assert train(network(), checkpoint=checkpoint).losses == expected.losses


def test_without_validations_an_interruption_costs_a_tenth_at_most(tmp_path):
    """Stopped in the last of 40 steps, with one validation, at the end."""
    checkpoint, drawn = tmp_path / "run.pt", []

    def draw(generator):
        drawn.append(1)
        if len(drawn) == 40:
            raise Interrupted
        return sample(generator)

    with pytest.raises(Interrupted):
        train(network(), draw=draw, every=None, checkpoint=checkpoint)
    assert len(load_weights(checkpoint)["history"]["losses"]) == 36
    resumed = train(network(), draw=draw, every=None, checkpoint=checkpoint)
    whole = train(network(), every=None)
    assert len(drawn) == 44
    assert resumed.losses == whole.losses and resumed.scores == whole.scores
    assert [step for step, _ in whole.scores] == [40]


def test_a_checkpoint_made_before_devices_were_told_apart_is_read(tmp_path):
    checkpoint = tmp_path / "run.pt"
    expected = train(network(), checkpoint=checkpoint)
    state = load_weights(checkpoint)
    del state["rng_device"]
    save_weights(state | {"rng_cuda": None}, checkpoint)
    assert train(network(), checkpoint=checkpoint).losses == expected.losses


def test_nothing_is_counted_or_said_on_a_cpu(capsys):
    train(network(), progress=True)
    said = capsys.readouterr()
    assert "TFLOP" not in said.out + said.err


def test_what_follows_each_step_may_stop_it():
    seen = []

    def stop(step, loss):
        seen.append((step, loss))
        if step == 5:
            raise Interrupted

    training.after_step.append(stop)
    try:
        with pytest.raises(Interrupted):
            train(network())
    finally:
        training.after_step.remove(stop)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]
    assert [loss for _, loss in seen] == train(network()).losses[:5]


def test_a_broken_checkpoint_says_what_to_do(tmp_path):
    checkpoint = tmp_path / "run.pt"
    save_weights({"model": torch.zeros(1000)}, checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(ValueError, match="delete it"):
        load_weights(checkpoint)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "weights.pt"
    save_weights({"a": torch.ones(2)}, path)
    with pytest.raises(Exception):
        save_weights({"a": lambda: None}, path)  # cannot be pickled
    assert torch.equal(load_weights(path)["a"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pt"]


def test_a_run_is_known_by_all_that_decides_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGBOOK_RUNS", str(tmp_path))
    monkeypatch.setenv("SEGBOOK_PROFILE", "smoke")

    def one():
        return 1

    def two():
        return 2

    images = torch.arange(6)
    path = runs.path("unet", "main", {"lr": 1}, one, nn.Linear, images)
    assert runs.fingerprint(Augment) == runs.fingerprint(Augment)  # a dataclass
    assert path.parent == tmp_path / "unet"
    assert path == runs.path("unet", "main", {"lr": 1}, one, nn.Linear, images.clone())
    others = [
        runs.path("unet", "main", {"lr": 2}, one, nn.Linear, images),
        runs.path("unet", "main", {"lr": 1}, two, nn.Linear, images),
        runs.path("unet", "main", {"lr": 1}, one, nn.Conv2d, images),
        runs.path("unet", "main", {"lr": 1}, one, nn.Linear, images + 1),
    ]
    monkeypatch.setenv("SEGBOOK_PROFILE", "cpu")
    others.append(runs.path("unet", "main", {"lr": 1}, one, nn.Linear, images))
    assert len({path, *others}) == 6


def test_the_checkpoint_of_another_network_says_what_to_do(tmp_path):
    checkpoint = tmp_path / "run.pt"
    train(network(), checkpoint=checkpoint)
    other = nn.Sequential(nn.Conv2d(1, 2, 1))
    with pytest.raises(ValueError, match="run.pt is .*another network.*: delete it"):
        train(other, checkpoint=checkpoint)
