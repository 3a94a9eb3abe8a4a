"""One model and its queue: from a request to an answer."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from fastapi import HTTPException, Request
from numpy.typing import NDArray
from PIL import Image
from starlette.requests import ClientDisconnect
from torch import Tensor

from rfdetr._version import __version__
from rfdetr.config import ServeConfig
from rfdetr.data.images import ImageError, decode_image, read_header
from rfdetr.detector import RFDETR
from rfdetr.errors import InputError
from rfdetr.export.metadata import digest_of_tensors
from rfdetr.inference.records import objects_of
from rfdetr.predicting import ExportedDetector
from rfdetr.serving.batching import Batcher, Ran
from rfdetr.serving.uploads import read_body, read_upload
from rfdetr.serving.wire import EXAMPLE_IMAGE, Answer, Health, Info, Options, Times

State = Literal["ready", "overloaded", "stopping"]
RETRY_AFTER = {"Retry-After": "1"}


class Prepared(NamedTuple):
    """An image that waits for the network: pixels (1, 3, S, S) uint8, the image's (height, width),
    the least confidence by label, and what was wanted.
    """

    pixels: Tensor
    size: tuple[int, int]
    least: NDArray[np.float32]
    options: Options
    decode_ms: float


class Service:
    """Answers requests with one model. All but its threads' work runs in the event loop."""

    def __init__(
        self, detector: RFDETR | ExportedDetector, limits: ServeConfig, dtype: str = "float32"
    ) -> None:
        """`dtype` is the arithmetic of a model that is no artifact."""
        self.model, self.limits = detector.model, limits
        self.info = _info(detector, limits, dtype)
        self.stopping = False
        self._in_hand: set[asyncio.Task[bytes]] = set()
        threads = min(4, os.cpu_count() or 1)
        # Two pools: what is nearly done does not wait behind images that have just come.
        self._before = ThreadPoolExecutor(threads, "images")
        self._after = ThreadPoolExecutor(threads, "answers")
        self._batcher: Batcher[Prepared, dict[str, Tensor]] = Batcher(
            self._detect, limits.batch_size
        )

    def warm_up(self) -> None:
        """Answers for an example, alone and in a full batch, so that no request waits for engines
        to compile, nor for modules to be read from the disk.
        """
        now = time.perf_counter()
        example = self._prepare(EXAMPLE_IMAGE, {"content-type": "image/gif"}, [])
        for count in {1, self.limits.batch_size}:
            found = self._detect([example] * count)[0]
            self._describe(example, Ran(found, count, 0.0, 0.0), now)

    @property
    def health(self) -> Health:
        full = len(self._in_hand) >= self.limits.queue
        state: State = "stopping" if self.stopping else "overloaded" if full else "ready"
        return Health(status=state, in_hand=len(self._in_hand))

    async def answer(self, request: Request) -> bytes:
        """The JSON of an `Answer`; an `HTTPException` for what cannot be answered.

        A request that comes in vain is refused before its body is read.
        """
        if (state := self.health.status) != "ready":
            why = "is stopping" if state == "stopping" else "has its hands full: try again"
            raise HTTPException(503, f"the server {why}", RETRY_AFTER)
        work = asyncio.create_task(self._answer(request))
        self._in_hand.add(work)
        try:
            await asyncio.wait({work})
            if work.cancelled():
                raise HTTPException(503, "the server is stopping", RETRY_AFTER)
            return work.result()
        finally:
            work.cancel()
            self._in_hand.discard(work)

    def abandon(self) -> None:
        """Gives up what is in hand: each is answered with 503."""
        for work in self._in_hand:
            work.cancel()

    def close(self) -> None:
        """Ends the threads."""
        for pool in (self._before, self._after):
            pool.shutdown(wait=False, cancel_futures=True)
        self._batcher.close(self.limits.stop_timeout)

    async def _answer(self, request: Request) -> bytes:
        limit = self.limits.timeout
        try:
            body = await asyncio.wait_for(read_body(request, self.limits.max_bytes), limit)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the body took longer than {limit:g} seconds") from None
        begun, in_pool = time.perf_counter(), asyncio.get_running_loop().run_in_executor
        query = request.query_params.multi_items()
        ready = in_pool(self._before, self._prepare, body, request.headers, query)
        del body  # what waits for the network is the small image alone
        work = asyncio.create_task(self._finish(ready, begun))
        gone = asyncio.ensure_future(request.receive())  # after the body: the client is gone
        try:
            await asyncio.wait({work, gone}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                raise ClientDisconnect
            raise HTTPException(504, f"no answer within {limit:g} seconds", RETRY_AFTER)
        finally:
            work.cancel()
            gone.cancel()

    async def _finish(self, preparing: asyncio.Future[Prepared], begun: float) -> bytes:
        ready = await preparing
        ran = await asyncio.wrap_future(self._batcher.submit(ready))
        in_pool = asyncio.get_running_loop().run_in_executor
        return await in_pool(self._after, self._describe, ready, ran, begun)

    def _prepare(
        self, body: bytes, headers: Mapping[str, str], query: list[tuple[str, str]]
    ) -> Prepared:
        """The image as the network takes it; 413, 415 or 422 for what it does not take."""
        begun = time.perf_counter()
        content, options = read_upload(body, headers, query)
        if options.masks and self.info.task != "segment":
            raise HTTPException(422, "masks: this model finds boxes alone, /info says its task")
        try:
            least = self.model.thresholds_by_label(options.threshold, options.thresholds)
        except InputError as error:
            raise HTTPException(422, str(error)) from error
        try:
            header = read_header(content, "the image")
        except ImageError as error:
            of_size = isinstance(error.__cause__, ImageError | Image.DecompressionBombError)
            raise HTTPException(413 if of_size else 415, str(error)) from error
        if header.height * header.width > (most := self.limits.max_pixels):
            found = f"the image has {header.width} x {header.height} pixels"
            raise HTTPException(413, f"{found}: expected at most {most:,} in all")
        try:
            image = decode_image(content, "the image")
        except ImageError as error:
            raise HTTPException(422, str(error)) from error
        pixels, (height, width) = self.model.preprocess([image]), image.shape[:2]
        took = _ms(time.perf_counter() - begun)
        return Prepared(pixels, (height, width), least, options, took)

    def _detect(self, waiting: list[Prepared]) -> list[dict[str, Tensor]]:
        pixels = torch.cat([one.pixels for one in waiting])
        return self.model.detect(pixels, torch.tensor([one.size for one in waiting]))

    def _describe(self, ready: Prepared, ran: Ran, begun: float) -> bytes:
        found: dict[str, Tensor] = ran.result
        if not ready.options.masks:
            found.pop("mask_logits", None)
        detections = self.model.to_detections(found, ready.least, ready.size)
        objects: Any = objects_of(detections, ready.size)
        height, width = ready.size
        total = _ms(time.perf_counter() - begun)
        times = Times(
            decode=ready.decode_ms, wait=_ms(ran.waited), network=_ms(ran.took), total=total
        )
        answer = Answer(
            width=width, height=height, threshold=ready.options.threshold,
            detections=objects, batch=ran.batch, time_ms=times,
        )  # fmt: skip
        return answer.model_dump_json(exclude_none=True).encode()


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def _info(detector: RFDETR | ExportedDetector, limits: ServeConfig, dtype: str) -> Info:
    """What `GET /info` says."""
    model, kind = detector.model, detector.kind
    engine = model.engine()
    if isinstance(detector, ExportedDetector):
        digest, dtype = detector.metadata.weights_sha256, detector.metadata.dtype
    else:
        digest = digest_of_tensors(detector.weights())
    return Info(
        version=__version__, variant=kind.variant, classes=model.labels, resolution=model.size,
        task="segment" if kind.has_masks else "detect", engine=engine.name, dtype=dtype,
        device=str(engine.device), weights_sha256=digest, limits=limits,
    )  # fmt: skip
