"""minutes=: the end in time, with the schedule fitted to it. The clock is the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rfdetr.config import ConfigError, TrainConfig
from rfdetr.training.callbacks import TimeLimitCallback, pace, time_limit
from rfdetr.training.callbacks.run_files import epoch_line
from rfdetr.training.lightning_state import find_callback
from rfdetr.training.optim import lr_factor
from rfdetr.training.plan import run_summary, training_plan

UPDATE, VALIDATION = 10.0, 25.0  # seconds
EPOCH = {"batch_size": 1, "grad_accum_steps": 1, "epochs": 40, "run_test": False}  # six updates


class Clock:
    """Seconds that pass when told so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def passes(self, seconds: float) -> Callable[..., None]:
        def pass_by(*_: Any) -> None:
            self.now += seconds

        return pass_by


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (pace, time_limit):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def timed_run(make_run: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    """A run whose updates and validations take the test's seconds; `rates` are its rates."""

    def make(**settings: Any) -> Any:
        rates: list[float] = []

        def noted(trainer: Any, _: Any) -> None:
            rates.extend(g["lr"] for g in trainer.optimizers[0].param_groups if g["name"] == "head")

        watch = {
            "on_before_optimizer_step": noted,
            "on_before_backward": clock.passes(UPDATE),
            "on_validation_epoch_start": clock.passes(VALIDATION),
        }
        run = make_run(watch=watch, **{**EPOCH, **settings})
        run.module.rates = rates
        return run

    return make


def test_a_run_ends_in_its_time_with_its_schedule_at_the_end(
    timed_run: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="rfdetr")
    start, minutes = clock.now, 5
    run = timed_run(minutes=minutes, lr_scheduler="cosine", warmup_epochs=2)
    run.fit()
    assert 60 * minutes - UPDATE - VALIDATION - pace.CLOSING < clock.now - start <= 60 * minutes
    limit = find_callback(run.trainer, TimeLimitCallback)
    # 85 seconds an epoch: three of them, and the fourth in part, with a validation of its own.
    assert run.trainer.current_epoch == 4 and 0 < limit.last_epoch < 1
    records = [json.loads(line) for line in (run.output / "log.txt").read_text().splitlines()]
    assert len(records) == 4 and all("val/mAP_50_95" in record for record in records)
    rates = run.module.rates
    assert rates[0] == 0 and max(rates) > 0.9e-3 and rates[-1] < 0.1e-3  # from 0, up, and down
    assert rates[rates.index(max(rates)) :] == sorted(rates[rates.index(max(rates)) :])[::-1]
    assert dict(run_summary(run.trainer, 1))["epochs"] == (
        f"4 of at most 40, the last one to {limit.last_epoch:.0%}: the 5 min were over"
    )
    assert "time is over after update" in caplog.text and "until the end at" in caplog.text
    assert epoch_line(1, 40, {}, 85.0, 215.0) == "epoch 1/40, 0:01:25, about 0:03:35 left"
    assert (run.output / "checkpoint_best_total.pth").exists()


def test_the_rate_follows_the_share_of_the_time(timed_run: Callable[..., Any]) -> None:
    shares: list[float] = []
    run = timed_run(minutes=5, lr_scheduler="cosine")
    share = _watch("on_before_optimizer_step", lambda _, module: shares.append(module.time_share))
    run.trainer.callbacks.append(share)
    run.fit()
    settings: dict[str, Any] = {"total_steps": 240, "steps_per_epoch": 6, "lr_scheduler": "cosine"}
    places = [max(step, share * 240) for step, share in enumerate(shares, 1)]
    wanted = [1e-3, *(1e-3 * lr_factor(place, **settings) for place in places[:-1])]
    assert run.module.rates == pytest.approx(wanted, rel=1e-6)
    assert shares == sorted(shares) and shares[-1] > 0.9


def test_where_epochs_end_first_all_is_as_without(
    timed_run: Callable[..., Any], make_run: Callable[..., Any]
) -> None:
    settings = {"epochs": 2, "lr_scheduler": "cosine", "drop_path": 0.1}
    timed, plain = (
        timed_run(minutes=1000, **settings),
        make_run(output="p", **{**EPOCH, **settings}),
    )
    timed.fit(), plain.fit()
    tables = [(each.output / "metrics.csv").read_bytes() for each in (timed, plain)]
    assert tables[0] == tables[1]
    assert dict(run_summary(timed.trainer, 1))["epochs"] == "2"


def test_no_epoch_begins_without_room_for_its_validation(
    timed_run: Callable[..., Any], clock: Clock
) -> None:
    start = clock.now
    # One epoch with validation is over after 85 s; another update and validation need 35 + 5.
    run = timed_run(minutes=(85 + 35) / 60)
    run.fit()
    assert run.trainer.current_epoch == 1 and clock.now - start == 85
    assert dict(run_summary(run.trainer, 1))["epochs"] == "1 of at most 40: the 2 min were over"


def test_the_last_epoch_is_judged_where_others_are_not(timed_run: Callable[..., Any]) -> None:
    run = timed_run(minutes=4, eval_interval=30).fit()
    records = [json.loads(line) for line in (run.output / "log.txt").read_text().splitlines()]
    assert ["val/mAP_50_95" in record for record in records] == [False] * (len(records) - 1) + [
        True
    ]


def test_a_resumed_run_goes_on_with_its_time(
    timed_run: Callable[..., Any], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    class Stop(Exception):
        pass

    def stop(trainer: Any, _: Any) -> None:
        if trainer.current_epoch == 2:
            raise Stop

    run = timed_run(minutes=5)
    run.trainer.callbacks.append(_watch("on_train_batch_start", stop))
    with pytest.raises(Stop):
        run.fit()
    clock.now += 10_000  # which nobody counts
    resumed = timed_run(minutes=5)
    start = clock.now
    resumed.fit(ckpt_path="last")
    assert resumed.trainer.current_epoch == 4
    assert 60 < clock.now - start <= 300 - 170
    rates = resumed.module.rates
    again = timed_run(minutes=5)
    again.fit(ckpt_path="last")
    assert "its 5 min were over after 4 epochs: raise minutes to go on" in caplog.text
    longer = timed_run(minutes=7)
    longer.fit(ckpt_path="last")
    assert longer.trainer.current_epoch > 4 and rates


def test_rank_0_decides_for_all(timed_run: Callable[..., Any], monkeypatch: Any) -> None:
    run = timed_run(minutes=5)
    asked: list[Any] = []

    def other_rank(decision: Any) -> Any:
        asked.append(decision)
        return 0.25, len(asked) == 4

    monkeypatch.setattr(run.trainer.strategy, "broadcast", lambda value, *_: value)
    run.trainer.callbacks.append(
        _watch(
            "on_train_start",
            lambda trainer, _: monkeypatch.setattr(trainer.strategy, "broadcast", other_rank),
        )
    )
    run.trainer.callbacks.append(
        _watch(
            "on_train_epoch_end",
            lambda trainer, _: monkeypatch.setattr(trainer.strategy, "broadcast", lambda v, *_: v),
        )
    )
    run.fit()
    assert run.trainer.global_step == 4 and run.module.time_share == 0.25


def test_the_plan_and_the_setting(make_run: Callable[..., Any]) -> None:
    run = make_run(minutes=30)
    plan = dict(training_plan(run.module, run.datamodule, run.trainer))
    assert plan["time"] == "at most 30 min, with the evaluation"
    assert "time" not in dict(training_plan(*make_run()[:3]))
    with pytest.raises(ConfigError, match="minutes: Input should be greater than 0"):
        TrainConfig(dataset_dir="data", minutes=0)


def _watch(hook: str, look: Callable[..., object]) -> pace.Callback:
    callback = pace.Callback()
    setattr(callback, hook, lambda trainer, module, *_: look(trainer, module))
    return callback
