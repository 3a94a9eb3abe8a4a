"""`compile=True`: as many graphs as sizes, the losses of a run without, and the same files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_leaves

from rfdetr import RFDETRMini
from rfdetr.errors import InputError
from rfdetr.models.build import build_detector
from rfdetr.training import RFDETRDataModule, build_trainer, compiled
from rfdetr.training.adapters import adapted_linear, add_adapters
from rfdetr.training.compiled import CompiledNetwork
from rfdetr.training.steps import training_sizes


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Counts graphs, which PyTorch runs as they are."""
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiled, "BACKEND", counter)
    compiled.check_compiler.cache_clear()
    compiled.check_compiler("cpu")
    counter.clear()
    yield counter
    compiled.check_compiler.cache_clear()


def same(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "case", ["boxes", "masks", "recomputed", "adapters", "drop-path", "padding"]
)
def test_a_compiled_network_is_the_network_by_one_graph_a_size(
    tiny_model: Callable[..., Any], graphs: Any, case: str
) -> None:
    """Three rounds over a square and a rectangle, and a batch of an epoch's end in each."""
    changes = {"segmentation_head": case == "masks", "gradient_checkpointing": case == "recomputed"}
    torch.manual_seed(0)
    detector = build_detector(tiny_model(**changes)).train()
    if case == "adapters":
        pytest.importorskip("peft")
        add_adapters(detector)
    device = torch.device("cpu") if case == "drop-path" else None
    network = CompiledNetwork(detector, 2, 2, device)
    for step in range(3):
        detector.set_drop_path(0.5 - 0.1 * step if case == "drop-path" else 0.0)
        for height, width, count in ((64, 64, 2), (64, 96, 2), (64, 64, 1)):
            images = torch.randn(count, 3, height, width)
            mask = torch.zeros(count, height, width, dtype=torch.bool)
            mask[:, :, 48:] = True
            found = []
            for run in (network, detector):
                torch.manual_seed(step)
                outputs = run(images, mask if case == "padding" else None)
                parts = [x for x in tree_leaves(outputs) if torch.is_tensor(x)]
                detector.zero_grad()
                torch.stack([part.square().mean() for part in parts]).sum().backward()
                found.append((parts, [p.grad for p in detector.parameters()]))
            same(*found)
    assert graphs.frame_count == 2


@pytest.mark.slow
@pytest.mark.parametrize("scales", [True, "per-sample"])
def test_epochs_of_many_sizes_make_a_graph_a_size_and_have_the_losses_of_a_run_without(
    make_run: Callable[..., Any], graphs: Any, scales: Any
) -> None:
    settings = {"epochs": 4, "eval_interval": 4, "batch_size": 2, "grad_accum_steps": 1, "lr": 1e-6}
    settings |= {"lr_encoder": 1e-6, "multi_scale": scales, "run_test": False}
    found = []
    for compile_ in (False, True):
        losses: list[Any] = []
        run = make_run(
            **{**settings, "compile": compile_, "output": f"compile-{compile_}"},
            model={"amp": False},
            watch={"on_train_batch_end": lambda _, module: losses.append(module.last_losses)},  # noqa: B023
        ).fit()
        found.append(losses)
    assert len(found[0]) == 12
    same(found[1], found[0])
    most = len(training_sizes(run.module.model_config, run.module.train_config))
    most *= 2 if scales == "per-sample" else 1
    assert 3 <= graphs.frame_count == len(run.module.compiled.shapes) <= most
    assert list(run.module.state_dict()) == list(make_run().module.state_dict())
    last = torch.load(run.output / "last.ckpt", weights_only=True)
    assert last["train_config"]["compile"] and not any("_orig_mod" in x for x in last["state_dict"])


def test_more_sizes_than_are_known_run_uncompiled(
    make_run: Callable[..., Any], graphs: Any
) -> None:
    """Loaders of others may give any size; each that is new would make the run wait."""
    run = make_run(compile=True, epochs=1, run_test=False)
    images = [torch.randint(256, (2, 3, side, side), dtype=torch.uint8) for side in (64, 96, 128)]
    target = {"labels": torch.tensor([1]), "boxes": torch.full((1, 4), 0.4)}
    loader = torch.utils.data.DataLoader(
        [(batch, [target, target]) for batch in images], batch_size=None
    )
    run.trainer.fit(run.module, loader)
    assert run.trainer.global_step == 2 and graphs.frame_count == 1
    assert run.module.compiled.shapes == {((2, 3, 64, 64), True)}
    # Nor does a graph of an earlier run take the place of one of this.
    again = make_run(compile=True, epochs=1, run_test=False, output="again")
    again.trainer.fit(again.module, loader)
    assert graphs.frame_count == 2


@pytest.mark.slow
def test_a_compiled_run_goes_on_to_the_bit(make_run: Callable[..., Any], graphs: Any) -> None:
    settings = {"compile": True, "epochs": 2, "run_test": False}
    whole = make_run(**settings, output="whole").fit()
    make_run(**settings, trainer={"max_epochs": 1}).fit()
    resumed = make_run(**settings).fit(ckpt_path="last")
    want, got = (
        torch.load(one.output / "last.ckpt", weights_only=True) for one in (whole, resumed)
    )
    assert resumed.trainer.global_step == whole.trainer.global_step and graphs.frame_count == 3
    for part in (lambda one: one["state_dict"], lambda one: one["optimizer_states"][0]["state"]):
        torch.testing.assert_close(part(got), part(want), rtol=0, atol=0)
    average = [one["callbacks"]["RFDETREMACallback"]["weights"] for one in (got, want)]
    torch.testing.assert_close(*average, rtol=0, atol=0)
    plain = make_run(**{**settings, "compile": False}, trainer={"max_epochs": 3})
    assert plain.fit(ckpt_path="last").trainer.current_epoch == 3


def test_adapters_are_the_same_in_plain_tensors(tiny_model: Callable[..., Any]) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    detector = build_detector(tiny_model())
    add_adapters(detector)
    layer: Any = detector.encoder.blocks[1].qkv.key
    learning = [layer.lora_A, layer.lora_B, layer.lora_magnitude_vector]
    trained = [weight for part in learning for weight in part.parameters()]
    with torch.no_grad():
        for weight in trained:
            weight.add_(torch.randn_like(weight) * 0.05)
    x = torch.randn(3, 5, layer.in_features)
    results = [layer(x), adapted_linear(layer, x)]
    torch.testing.assert_close(*results)
    factor = torch.randn_like(results[0])
    want, got = (torch.autograd.grad((one * factor).sum(), trained) for one in results)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_compiled_is_told_before_the_data_is_read(
    train_config: Callable[..., Any],
    tiny_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiled, "BACKEND", refuse)
    compiled.check_compiler.cache_clear()
    told = r"torch.compile cannot make code for cpu here \(.*No working C\+\+ .*apt install g\+\+"
    config = train_config(compile=True)
    with pytest.raises(InputError, match=told):
        build_trainer(config, tiny_model())
    monkeypatch.setattr(RFDETRDataModule, "setup", lambda *_: pytest.fail("read the data"))
    with pytest.raises(InputError, match=told):
        RFDETRMini(pretrain_weights=None).train(
            dataset_dir=config.dataset_dir, compile=True, accelerator="cpu"
        )


def test_sharded_weights_are_refused(make_run: Callable[..., Any], graphs: Any) -> None:
    run = make_run(compile=True)
    run.trainer.strategy.__class__ = type("FSDPStrategy", (type(run.trainer.strategy),), {})
    with pytest.raises(InputError, match="compile=True with a sharded strategy: expected one dev"):
        run.fit()


@pytest.mark.scheduled
def test_a_machine_without_a_compiler_is_told_so(tmp_path: Path) -> None:
    script = "from rfdetr.training.compiled import check_compiler; check_compiler('cpu')"
    environment = {**os.environ, "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    environment.pop("CXX", None)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert "InputError: compile=True, but torch.compile cannot make code for cpu" in done.stderr
    assert "No working C++ compiler" in done.stderr
