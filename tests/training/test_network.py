"""`module.model` compiled, wrapped, or in another precision: it trains, and its files are the plain
network's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rfdetr import RFDETR
from rfdetr.models.detector import Detector

PLAIN = {"epochs": 1, "run_test": False}


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module, **parts: nn.Module) -> None:
        super().__init__()
        self.module = module
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)


def compiled(network: nn.Module) -> Any:
    return torch.compile(network, backend="eager")


WRAPPERS = [
    pytest.param(Wrapper, id="own"),
    pytest.param(nn.DataParallel, id="parallel"),
    pytest.param(compiled, id="compiled", marks=pytest.mark.scheduled),
    pytest.param(lambda network: Wrapper(Wrapper(network)), id="twice"),
]


@pytest.mark.slow
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_network_leaves_the_files_of_the_plain_one(
    make_run: Callable[..., Any], wrap: Callable[[nn.Module], Any]
) -> None:
    plain = make_run(**PLAIN, output="plain").fit()
    run = make_run(**PLAIN)
    run.module.model = wrap(run.module.model)
    run.fit()
    for name in ("last.ckpt", "checkpoint_best_total.pth"):
        want = torch.load(plain.output / name, weights_only=True)
        got = torch.load(run.output / name, weights_only=True)
        assert list(got["model"]) == list(want["model"])
        torch.testing.assert_close(got["model"], want["model"], rtol=0, atol=1e-5)
    assert list(run.module.state_dict()) == list(plain.module.state_dict())
    rates = [
        [group["name"] for group in one.trainer.optimizers[0].param_groups] for one in (run, plain)
    ]
    assert rates[0] == rates[1]
    assert (
        len(
            RFDETR.from_checkpoint(
                run.output / "checkpoint_best_total.pth", device="cpu"
            ).class_names
        )
        == 3
    )

    # And either form goes on from the other's file.
    onwards = make_run(epochs=2, run_test=False, overwrite=True)
    onwards.module.model = wrap(onwards.module.model)
    onwards.fit(ckpt_path=plain.output / "last.ckpt")
    assert onwards.trainer.global_step == 2 * plain.trainer.global_step


def test_a_wrapper_with_weights_of_its_own_is_refused(make_run: Callable[..., Any]) -> None:
    run = make_run(**PLAIN)
    run.module.model = Wrapper(run.module.model, extra=nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match=r"Wrapper with weights of its own \(extra.weight, extra.bias\)"
    ):
        run.fit()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)]
)
def test_a_true_precision_trains_saves_and_goes_on_to_the_bit(
    make_run: Callable[..., Any], precision: str, dtype: torch.dtype
) -> None:
    whole = make_run(trainer={"precision": precision}, output="whole", run_test=False).fit()
    assert {tensor.dtype for tensor in whole.module.detector.parameters()} == {dtype}
    best = torch.load(whole.output / "checkpoint_best_total.pth", weights_only=True)["model"]
    assert {tensor.dtype for tensor in best.values() if tensor.is_floating_point()} == {
        torch.float32
    }

    make_run(trainer={"precision": precision, "max_epochs": 1}, run_test=False).fit()
    resumed = make_run(trainer={"precision": precision}, run_test=False).fit(ckpt_path="last")
    want, got = (
        torch.load(one.output / "last.ckpt", weights_only=True) for one in (whole, resumed)
    )
    torch.testing.assert_close(got["state_dict"], want["state_dict"], rtol=0, atol=0)
    average = [one["callbacks"]["RFDETREMACallback"]["weights"] for one in (got, want)]
    torch.testing.assert_close(*average, rtol=0, atol=0)
    assert {tensor.dtype for tensor in average[0].values()} == {
        torch.promote_types(dtype, torch.float32)
    }


def test_half_precision_rounds_no_box(make_run: Callable[..., Any]) -> None:
    boxes: list[torch.Tensor] = []
    run = make_run(**PLAIN, trainer={"precision": "bf16-true"})
    evaluate = run.module.evaluate
    run.module.evaluate = lambda batch: boxes.append(batch[1][0]["boxes_xyxy"]) or evaluate(batch)
    with pytest.warns(UserWarning, match="bf16-mixed"):
        run.fit()
    assert torch.equal(boxes[0], run.datamodule.val_dataloader().dataset[0][1]["boxes_xyxy"])


def test_float16_alone_is_refused_before_it_trains(make_run: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match='"16-mixed"'):
        make_run(**PLAIN, trainer={"precision": "16-true"}).fit()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(
    make_run: Callable[..., Any], dtype: torch.dtype
) -> None:
    from rfdetr.data.images import _normalization

    want = make_run(**PLAIN, output="want").fit().module.state_dict()
    _normalization.cache_clear()
    torch.set_default_dtype(dtype)
    try:
        got = make_run(**PLAIN).fit().module.state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert _normalization(torch.device("cpu"))[0].dtype == torch.float32


def test_a_network_without_a_detector_is_refused(make_run: Callable[..., Any]) -> None:
    run = make_run(**PLAIN)
    run.module.model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="network of Linear: expected a Detector"):
        run.fit()
    assert not isinstance(run.module.model, Detector)
