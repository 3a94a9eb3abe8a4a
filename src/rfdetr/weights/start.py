"""`Start`: what a model in memory was made of, and so what its training starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from rfdetr.weights.load import LoadReport
from rfdetr.weights.reading import Checkpoint


class Start:
    """What training draws again from the run's seed, and fits anew to the data's classes.

    `state` is a network just built, its tensors by published name, `report` what was loaded into
    it, `names` the classes of the file. Without a state, as after training, all weights stay.
    """

    def __init__(
        self,
        names: Sequence[str] | None,
        state: Mapping[str, Tensor] | None = None,
        report: LoadReport | None = None,
        file: Path | None = None,
    ) -> None:
        self.names = names
        self.file = file or (report and report.file) or Path("random weights")
        self.random = {*(report.fresh if report else state or ())}
        self.originals = report.originals if report else {}  # before they were fitted to the model
        self.fitted = {name: state[name].clone() for name in self.originals} if state else {}

    def weights(self, state: Mapping[str, Tensor]) -> Checkpoint:
        """What training starts from where the network now is `state`.

        It has none of the random tensors. Of those that were fitted to the model and that nobody
        has changed since, it has the file's own.
        """
        model = {name: state[name] for name in state if name not in self.random}
        fitted = self.fitted.items()
        if all(state[name].cpu().equal(rows.to(state[name].dtype)) for name, rows in fitted):
            model |= self.originals
        return Checkpoint(self.file, model, {"class_names": self.names})
