"""Names of the published package are here, or tell what is in their place."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

import rfdetr
from rfdetr import RFDETR, RFDETRMini, RFDETRNano, moved
from rfdetr.config import VARIANTS
from rfdetr.errors import MovedError

NAMES = json.loads((Path(__file__).parent / "published_names.json").read_text())
"""Of rfdetr 1.11.2 by module, of its models ("RFDETR", "ModelContext"), and "modules" of all
releases.
"""
MODULES = [name for name in NAMES if name.startswith("rfdetr")]
ASK = """
import importlib, json, warnings
warnings.simplefilter("ignore")
def names(module):
    held = importlib.import_module(module)
    own = [n for n in dir(held) if getattr(getattr(held, n), "__module__", "")[:6] == "rfdetr"]
    return [name for name in getattr(held, "__all__", own) if name[0] != "_"]
import rfdetr
model = rfdetr.RFDETRNano(pretrain_weights=None, resolution=64)
of = {module: names(module) for module in MODULES}
for kind, one in (("RFDETR", model), ("ModelContext", model.model)):
    of[kind] = [name for name in dir(one) if name[0] != "_"]
print(json.dumps(of))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    "RFDETR_PUBLISHED_PYTHON" not in os.environ,
    reason="RFDETR_PUBLISHED_PYTHON names no interpreter with the published package",
)
def test_the_list_of_published_names_is_whole() -> None:
    keep = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [os.environ["RFDETR_PUBLISHED_PYTHON"], "-c", f"MODULES = {MODULES}\n{ASK}"]
    done = subprocess.run(command, env=keep, capture_output=True, check=True, text=True)
    for place, names in json.loads(done.stdout.splitlines()[-1]).items():
        assert set(names) <= set(NAMES[place].split()), place


@pytest.mark.parametrize("module", MODULES)
def test_every_name_of_a_module_is_here_or_answered(module: str) -> None:
    held = importlib.import_module(module)
    for name in NAMES[module].split():
        if f"{module}.{name}" in moved.NOT_HERE:
            with pytest.raises(MovedError, match=f"{module}.{name} of the published .* not here: "):
                getattr(held, name)
        elif name != "box_ops":  # a module
            assert getattr(held, name) is not None
    with pytest.raises(AttributeError, match=f"'{module}' has no attribute 'RFDETRHuge'"):
        _ = held.RFDETRHuge


@pytest.mark.parametrize("name", NAMES["modules"].split())
def test_every_module_is_here_or_answered(name: str) -> None:
    path = f"rfdetr.{name}"
    if gone := [one for one in (path, path.rpartition(".")[0]) if one in moved.NOT_HERE]:
        with pytest.raises(ImportError, match=gone[0]):
            importlib.import_module(path)
    else:
        importlib.import_module(path)


def test_every_attribute_of_a_model_is_here_or_answered() -> None:
    model = RFDETRMini(device="cpu")
    for kind, owner in (("RFDETR", model), ("ModelContext", model.model)):
        for name in NAMES[kind].split():
            advice = moved.NOT_HERE.get(f"{kind}.{name}")
            assert hasattr(owner, name) == (advice is None), name
    with pytest.raises(AttributeError, match=r"callbacks': pass .*trainer\.callbacks\.append"):
        model.callbacks["on_fit_epoch_end"].append(print)
    with pytest.raises(AttributeError, match=r"^'ModelContext' object has no attribute 'modle'$"):
        _ = model.model.modle
    assert isinstance(model.model, rfdetr.ModelContext)
    assert model.model.class_names == model.class_names


def test_what_the_table_advises_is_there() -> None:
    for path in (
        "models.build.build_detector",
        "models.detector.postprocess_outputs",
        "losses.criterion.Criterion",
        "weights.download.fetch",
        "weights.download.cache_dir",
        "weights.reading.read_checkpoint",
        "training.RFDETRDataModule",
    ):
        module, _, name = path.rpartition(".")
        assert f"{name}" in str(moved.NOT_HERE.values())
        assert hasattr(importlib.import_module(f"rfdetr.{module}"), name)


def test_a_variant_has_its_published_size() -> None:
    assert RFDETR.size is None
    assert RFDETRNano.size == "rfdetr-nano"
    assert rfdetr.RFDETRLargeDeprecated.size == rfdetr.RFDETRLarge.size == "rfdetr-large"
    assert RFDETR.classes[VARIANTS["seg-2xlarge"]].size == "rfdetr-seg-2xlarge"


def test_boxes_are_as_published() -> None:
    from rfdetr.util.box_ops import box_cxcywh_to_xyxy, box_iou, generalized_box_iou
    from rfdetr.util.misc import NestedTensor
    from rfdetr.utilities import NestedTensor as Same

    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3]])
    iou, union = box_iou(boxes, boxes)
    assert union.tolist() == [[4, 7], [7, 4]]
    torch.testing.assert_close(iou, torch.tensor([[1, 1 / 7], [1 / 7, 1]]))
    expected = torch.tensor([[1, -0.0794], [-0.0794, 1]])  # what the published package prints
    torch.testing.assert_close(generalized_box_iou(boxes, boxes), expected, atol=1e-4, rtol=0)
    assert box_cxcywh_to_xyxy(torch.tensor([1.0, 1, 2, 2])).tolist() == [0, 0, 2, 2]
    assert NestedTensor is Same
