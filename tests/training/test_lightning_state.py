"""The counters of the installed Lightning are those that resuming knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rfdetr.training.lightning_state import batches_done, epochs_in

ALL = ("ready", "started", "processed", "completed")
OPTIMIZER = "epoch_loop.automatic_optimization.optim_progress.optimizer"
COUNTERS: dict[str, tuple[str, ...]] = {
    "epoch_progress": ALL,
    "epoch_loop.batch_progress": ALL,
    "epoch_loop.val_loop.batch_progress": ALL,
    "epoch_loop.scheduler_progress": ("ready", "completed"),
    f"{OPTIMIZER}.step": ("ready", "completed"),
    f"{OPTIMIZER}.zero_grad": ("ready", "started", "completed"),
    "epoch_loop.manual_optimization.optim_step_progress": ("ready", "completed"),  # not in use
}
"""Those that lightning_state.py was written for; each is under "total" and under "current"."""
FLAGS = {
    "epoch_loop.batch_progress.is_last_batch",
    "epoch_loop.val_loop.batch_progress.is_last_batch",
    "epoch_loop.state_dict._batches_that_stepped",
}
"""What Lightning saves beside the counters, apart from the states of loaders."""


def names_in(state: dict[str, Any], prefix: str = "") -> set[str]:
    """The places of numbers in nested dicts, such as "epoch_progress.total.ready"."""
    names: set[str] = set()
    for key, value in state.items():
        if isinstance(value, dict):
            names |= names_in(value, f"{prefix}{key}.")
        else:
            names.add(prefix + key)
    return names


def test_lightning_writes_the_counters_that_resuming_rewinds(make_run: Callable[..., Any]) -> None:
    run = make_run(epochs=1, run_test=False).fit()
    saved = torch.load(run.output / "last.ckpt", weights_only=True)
    known = FLAGS | {
        f"{section}.{part}.{counter}"
        for section, counters in COUNTERS.items()
        for part in ("total", "current")
        for counter in counters
    }
    for state in (saved["loops"]["fit_loop"], run.trainer.fit_loop.state_dict()):
        found = names_in(state)
        found -= {name for name in found if name.startswith("state_dict.combined_loader")}
        assert found == known, (
            "this Lightning counts its progress in another way: it has the new counters "
            f"{sorted(found - known)} and lacks {sorted(known - found)}. Before adding them to "
            "lightning_state.py, see to it that rewind_progress and place_in_run set them right"
        )
    assert (epochs_in(saved, "completed"), batches_done(run.trainer)) == (1, 3)
    assert epochs_in({}, "completed") is None
