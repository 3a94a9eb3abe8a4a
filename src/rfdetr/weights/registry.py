"""The published weight files: name, address and MD5 sum of each."""

from __future__ import annotations

from typing import NamedTuple


class PublishedFile(NamedTuple):
    """One file that can be downloaded; `md5` is the hexadecimal sum of its bytes."""

    name: str
    url: str
    md5: str


_BASE_URL = "https://storage.googleapis.com/rfdetr/"

_FILES = """
rf-detr-base.pth       b4d3ce46099eaed50626ede388caf979 rf-detr-base-coco.pth
rf-detr-base-o365.pth  d93f4921ccbb0f0a2e4364bed290892b top-secret-1234/lwdetr_dinov2_small_o365_checkpoint.pth
rf-detr-base-2.pth     462f4d9df407ddc1812f42614040e913 rf-detr-base-2.pth
rf-detr-large.pth      992c8e862aa733a7bb2777e45d49f1a0 rf-detr-large.pth
rf-detr-large-2026.pth 5cb72153541cbcb9aa6efa26222acc75 rf-detr-large-2026.pth
rf-detr-nano.pth       fb6504cce7fbdc783f7a46991f07639f nano_coco/checkpoint_best_regular.pth
rf-detr-small.pth      fb37061c1af7bace359c91b723a8d5c1 small_coco/checkpoint_best_regular.pth
rf-detr-medium.pth     7223f764a87b863f02eb8d52bf0ce2ee medium_coco/checkpoint_best_regular.pth
rf-detr-seg-preview.pt e35820c28fb86080558123e47a5e49ca rf-detr-seg-preview.pt
rf-detr-seg-nano.pt    9995497791d0ff1664a1d9ddee9cfd20 rf-detr-seg-n-ft.pth
rf-detr-seg-small.pt   0a2a3006381d0c42853907e700eadd08 rf-detr-seg-s-ft.pth
rf-detr-seg-medium.pt  a49af1562c3719227ad43d0ca53b4c7a rf-detr-seg-m-ft.pth
rf-detr-seg-large.pt   275f7b094909544ed2841c94a677d07e rf-detr-seg-l-ft.pth
rf-detr-seg-xlarge.pt  3693b35d0eea86ebb3e0444f4a611fba rf-detr-seg-xl-ft.pth
rf-detr-seg-xxlarge.pt 040bc3412af840fa8a47e0ff69b552ba rf-detr-seg-2xl-ft.pth
"""

PUBLISHED: dict[str, PublishedFile] = {
    name: PublishedFile(name, _BASE_URL + path, md5)
    for name, md5, path in map(str.split, _FILES.split("\n")[1:-1])
}
"""By name; besides the variants' files, two more of the base model: another training and
Objects365.
"""

BUNDLED: frozenset[str] = frozenset({"rf-detr-mini.safetensors", "rf-detr-seg-mini.safetensors"})
"""Files that come with the package."""
