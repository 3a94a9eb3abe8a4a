"""float16 with a scaler, as on GPUs without bfloat16, run on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch.nn.utils import get_total_norm

from rfdetr.training.callbacks import NonFiniteCallback, RFDETREMACallback
from rfdetr.training.lightning_state import find_callback, loss_scale

PLAIN = {"grad_accum_steps": 1, "run_test": False}


def in_float16(init_scale: float, **settings: Any) -> dict[str, Any]:
    """A trainer's settings; on a CPU, Lightning takes the name "16-mixed" alone for bfloat16."""
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, **settings)
    return {"precision": None, "plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


def skipped(run: Any) -> int:
    return find_callback(run.trainer, NonFiniteCallback).skipped


@pytest.mark.slow
def test_a_scale_that_overflows_falls_and_the_run_recovers(
    make_run: Callable[..., Any], recwarn: pytest.WarningsRecorder
) -> None:
    seen: list[Any] = []

    def look(trainer: Any, module: Any) -> None:
        average = find_callback(trainer, RFDETREMACallback).updates
        weight = module.detector.class_head.weight.detach().clone()
        rate = trainer.lr_scheduler_configs[0].scheduler.last_epoch
        seen.append((weight, average, loss_scale(trainer), rate, trainer.global_step))

    run = make_run(
        **{**PLAIN, "epochs": 12, "eval_interval": 12},
        trainer=in_float16(2.0**40),
        watch={"on_train_batch_start": look, "on_train_end": look},
    )
    run.fit()
    assert run.trainer.precision == "16-mixed" and len(seen) == 37
    moved = 0
    for (old, before, high, *_), (new, after, low, rate, step) in itertools.pairwise(seen):
        overflowed = low < high
        assert torch.equal(old, new) == overflowed
        # The schedule counts every step, as the data passes; the average those that were.
        assert (after, rate) == (before + (not overflowed), step)
        moved += not overflowed
    assert 36 - moved > 10 and moved > 5  # more than end a run whose steps are broken
    assert skipped(run) == 0 and not list(run.output.glob("nonfinite-*"))
    assert all(weight.isfinite().all() for weight in run.module.parameters())
    assert not [str(w.message) for w in recwarn if "lr_scheduler.step()" in str(w.message)]


def test_gradients_are_clipped_at_their_own_size(make_run: Callable[..., Any]) -> None:
    norms: list[float] = []

    def watch(trainer: Any, module: Any) -> None:
        def look(optimizer: Any, *_: Any) -> None:
            norms.append(
                float(get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))
            )

        trainer.optimizers[0].register_step_pre_hook(look)

    make_run(
        **{**PLAIN, "epochs": 1, "grad_accum_steps": 2, "clip_max_norm": 0.2},
        trainer=in_float16(2.0**8),
        watch={"on_train_start": watch},
    ).fit()
    assert norms == pytest.approx([0.2, 0.2], rel=1e-2)


def test_a_loss_that_is_not_finite_counts(make_run: Callable[..., Any]) -> None:
    run = make_run(**PLAIN, epochs=1, trainer=in_float16(2.0**8))
    whole = run.module.compute_losses

    def compute_losses(*args: Any) -> dict[str, Any]:
        factor = float("nan") if run.module.global_step == 1 else 1.0
        return {name: value * factor for name, value in whole(*args).items()}

    run.module.compute_losses = compute_losses
    run.fit()
    assert skipped(run) == 1 and (run.output / "nonfinite-step-0000001.pt").exists()
    assert find_callback(run.trainer, RFDETREMACallback).updates == 2


def test_gradients_that_no_scale_makes_finite_end_the_run(make_run: Callable[..., Any]) -> None:
    run = make_run(**PLAIN, epochs=6, eval_interval=6, trainer=in_float16(4.0))
    run.module.model.class_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"10 optimizer steps in a row .*step 11;"):
        run.fit()


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_scale_to_the_bit(make_run: Callable[..., Any]) -> None:
    settings = {"epochs": 3, "run_test": False, "grad_accum_steps": 2, "drop_path": 0.0}
    growing = {"init_scale": 2.0**9, "growth_interval": 3}
    whole = make_run(**settings, trainer=in_float16(**growing), output="whole").fit()
    make_run(**settings, trainer={**in_float16(**growing), "max_epochs": 1}).fit()
    resumed = make_run(**settings, trainer=in_float16(2.0**16)).fit(ckpt_path="last")
    want, got = (
        torch.load(one.output / "last.ckpt", weights_only=True) for one in (whole, resumed)
    )
    assert got["MixedPrecision"] == want["MixedPrecision"]
    assert got["MixedPrecision"]["scale"] == 2.0**11  # it has grown twice in six steps
    for part in (lambda one: one["state_dict"], lambda one: one["optimizer_states"][0]["state"]):
        torch.testing.assert_close(part(got), part(want), rtol=0, atol=0)
    average = [one["callbacks"]["RFDETREMACallback"]["weights"] for one in (got, want)]
    torch.testing.assert_close(*average, rtol=0, atol=0)
