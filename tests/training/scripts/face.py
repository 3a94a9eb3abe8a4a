"""`train()` as a user calls it, in every process of torchrun: what each then predicts is in
rank<N>.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from rfdetr import RFDETRMini
from rfdetr.evaluation import plots

plots.plot_metrics = plots.plot_history = lambda *_: None
settings = json.loads(sys.argv[1].replace("{RANK}", os.environ["RANK"]))
model = RFDETRMini(**settings["model"])
model.train(**settings["train"])
found = model.predict(np.full((64, 64, 3), 100, np.uint8), threshold=0.0)
content = {"names": model.class_names, "confidence": found.confidence.tolist()}
Path(f"rank{os.environ['RANK']}.json").write_text(json.dumps(content))
