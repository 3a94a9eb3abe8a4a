"""Images that cannot be decoded: how many a run has met, and when they are too many."""

# mypy: disable-error-code="override"

from __future__ import annotations

from collections import defaultdict
from typing import Any

from pytorch_lightning import Callback, Trainer

from rfdetr.errors import RunError

MOST = 0.01  # share of a split's images; a single one stops no run


class UndecodableCallback(Callback):
    """Counts the images in whose place the dataset has given another, and stops a run with many.

    Such a target has "undecodable": the image's number, and how many images its split has.
    """

    def __init__(self) -> None:
        self.images: defaultdict[str, set[int]] = defaultdict(set)  # their numbers, by split

    def on_train_batch_start(self, _: Trainer, __: Any, batch: Any, *___: Any) -> None:
        self._count("train", batch[1])

    def on_validation_batch_start(self, _: Trainer, __: Any, batch: Any, *___: Any) -> None:
        self._count("valid", batch[1])

    def state_dict(self) -> dict[str, Any]:
        return {split: sorted(numbers) for split, numbers in self.images.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images.update({split: set(numbers) for split, numbers in state_dict.items()})

    def _count(self, split: str, targets: Any) -> None:
        for target in targets:
            if "undecodable" not in target:
                continue
            number, total = target["undecodable"].tolist()
            self.images[split].add(number)
            if (count := len(self.images[split])) > max(1, MOST * total):
                raise RunError(
                    f"{count} of {total} {split} images cannot be decoded, more than {MOST:.0%}; "
                    "the log names them, `rfdetr check` too. Replace or remove them, and go on "
                    "with resume='last'"
                )
