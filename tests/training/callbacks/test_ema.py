"""The average: its formula, when it moves, and that fit starts it from the restored weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rfdetr.training import RFDETREMACallback
from rfdetr.training.optim import ema_decay


def flat(model: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in model.state_dict().values()])


def ema_of(trainer: Any) -> RFDETREMACallback:
    return next(
        callback for callback in trainer.callbacks if isinstance(callback, RFDETREMACallback)
    )


def test_the_average_moves_with_every_optimizer_step_and_only_then(
    make_run: Callable[..., Any],
) -> None:
    live: list[Tensor] = []
    average: list[Tensor] = []

    def look(
        trainer: Any, module: Any
    ) -> None:  # runs before the callback: the average of the batch before
        live.append(flat(module.model))
        average.append(flat(ema_of(trainer).averaged()))

    watch = {"on_train_start": look, "on_train_batch_end": look}
    run = make_run(watch=watch, ema_decay=0.9, ema_tau=3, epochs=2, run_test=False).fit()
    average.append(flat(ema_of(run.trainer).averaged()))

    # Six images, two a batch, two batches an update: updates after batches 2 and 3 of each epoch.
    stepped = [2, 3, 5, 6]
    expected = live[0].double()
    for batch in range(1, 7):
        if batch in stepped:
            update = stepped.index(batch) + 1
            decay = ema_decay(update, 0.9, 3) if update > 1 else 0.0  # the first copies
            expected = decay * expected + (1 - decay) * live[batch].double()
        torch.testing.assert_close(average[batch + 1].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(average[3], live[2])
    assert ema_of(run.trainer).updates == len(stepped)


def test_the_average_may_move_with_every_other_step(make_run: Callable[..., Any]) -> None:
    live: list[Tensor] = []
    watch = {"on_train_batch_end": lambda _, module: live.append(flat(module.model))}
    settings = {"ema_update_interval": 2, "grad_accum_steps": 1, "run_test": False}
    run = make_run(watch=watch, ema_decay=0.9, ema_tau=3, **settings).fit()
    assert len(live) == 6 and ema_of(run.trainer).updates == 3
    expected = live[1].double()  # the first copies
    for update, batch in ((2, 3), (3, 5)):
        kept = ema_decay(update, 0.9, 3)
        expected = kept * expected + (1 - kept) * live[batch].double()
    average = torch.load(run.output / "last.ckpt")["callbacks"]["RFDETREMACallback"]["weights"]
    found = torch.cat([tensor.flatten() for tensor in average.values()])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_without_an_average_starts_one_from_its_weights(
    make_run: Callable[..., Any],
) -> None:
    first = make_run(use_ema=False, epochs=1, output="first").fit()
    started: list[Tensor] = []
    watch = {"on_train_start": lambda trainer, _: started.append(flat(ema_of(trainer).averaged()))}
    make_run(seed=99, epochs=2, watch=watch).fit(ckpt_path=first.output / "last.ckpt")
    weights = torch.load(first.output / "last.ckpt")["state_dict"]
    assert torch.equal(started[0], torch.cat([tensor.flatten() for tensor in weights.values()]))


def test_there_is_no_average_before_fit() -> None:
    with pytest.raises(RuntimeError, match="before fit"):
        RFDETREMACallback().averaged()
