"""The weights of a run's best evaluations, in files, and their mean (arXiv 1803.05407 has why)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rfdetr.files import digest_of, record_digests, recorded_digests
from rfdetr.training.run_folder import RunFolder
from rfdetr.weights.names import from_published
from rfdetr.weights.reading import read_checkpoint

logger = logging.getLogger(__name__)


class BestFew:
    """Which evaluations are the best `most` of a run so far; their files are `path(name)`.

    What drops out of the few keeps its file until the next evaluation, as the run may go on from a
    checkpoint that was saved before. So there are no more than `most` files and one.
    """

    def __init__(self, folder: RunFolder, most: int) -> None:
        self.folder, self.most = folder, most
        self.members: dict[str, dict[str, float]] = {}
        """{"score": figure, "epoch": counted from 0} by name, the best first."""

    def path(self, name: str) -> Path:
        return self.folder.best(name)

    def offer(self, step: int, entry: dict[str, float]) -> str | None:
        """Takes the evaluation after an optimizer step, if it is one of the best: then its name.

        The earlier one wins a tie.
        """
        name = f"step_{step}"
        known = {other: self.members[other] for other in self.members if other != name}
        ordered = sorted([*known.items(), (name, entry)], key=lambda one: -one[1]["score"])
        self.members = dict(ordered[: self.most])
        return name if name in self.members else None

    def remove_others(self) -> None:
        """Deletes the files of evaluations that are no members, also those of a later time than
        that from which a run goes on.
        """
        kept = {self.path(name) for name in self.members}
        for path in sorted(set(self.path("step_*").parent.glob(self.path("step_*").name)) - kept):
            path.unlink()
            record_digests(path, [])

    def mean(self) -> dict[str, Tensor]:
        """The mean of the members' weights, by our names, summed in float64.

        The network's norms keep no statistics of the data, so that none are to be measured anew; a
        tensor of whole numbers, which a user's network may have, is the best member's.
        """
        best, *others = (read_checkpoint(self.path(name)).model for name in self.members)
        total = {name: best[name].double() for name in best if best[name].is_floating_point()}
        for model in others:
            for name, tensor in total.items():
                tensor += model[name]
        means = {n: (total[n] / len(self.members)).to(best[n].dtype) for n in total}
        return from_published({**best, **means})

    def state_dict(self) -> dict[str, Any]:
        digests = {name: recorded_digests(self.path(name)) for name in self.members}
        return {"members": self.members, "files": digests}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over the members whose files are in the folder as the checkpoint knew them."""
        self.members = {}
        for name, entry in state_dict.get("members", {}).items():
            path = self.path(name)
            if path.exists() and digest_of(path) in state_dict["files"][name]:
                self.members[name] = entry
            else:
                told = "%s is not here as the checkpoint knows it: average_best goes on without it"
                logger.warning(told, path)


def epochs_in_words(members: Mapping[str, Mapping[str, float]]) -> str:
    """ "epochs 3, 5 and 6", counted from 1."""
    *first, last = (f"{epoch:.0f}" for epoch in sorted(m["epoch"] + 1 for m in members.values()))
    return f"epochs {', '.join(first)} and {last}"
