"""The models that a visitor may choose from: an allow-list, loaded when asked for, bounded in memory."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ddpm_hf.errors import UserError, nearest
from ddpm_hf.hub import public_name
from ddpm_hf.pipeline import HALF_PRECISION_BATCH, HALF_PRECISION_BATCH_ELSEWHERE, MyDDPMPipeline
from ddpm_hf.ui.limits import Limits

MAX_MEMORY = 4 * 2**30  # bytes of weights in memory at once; $MODELS_MEMORY sets another number, in GB


def models_from_environment(first: str | None = None) -> list[str | None]:
    """``first`` or $MODEL_ID, else None, the embedded model; and those of $MODELS, separated by commas."""
    others = [name.strip() for name in os.environ.get("MODELS", "").split(",")]
    return list(dict.fromkeys([first or os.environ.get("MODEL_ID") or None, *filter(None, others)]))


def shown_name(model: str | Path | None) -> str:
    """How to call a model on the page: a Hub id as it is, of a folder its name, never where it is."""
    if model is None:
        return "the small Fashion-MNIST model"
    return Path(model).resolve().name if Path(model).exists() else str(model)


class Model:
    """A loaded model. name: how visitors call it; source: what ``load_pipeline`` was given, None for the embedded."""

    def __init__(self, name: str, pipeline: MyDDPMPipeline, source: str | None = None):
        self.name, self.pipeline, self.source = name, pipeline, source
        self.limits = Limits.of(pipeline)
        networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        self.num_bytes = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())

    @property
    def is_of_hub(self) -> bool:
        """Whether it was loaded by the id of a repository."""
        return self.source is not None and not Path(self.source).is_dir()

    @property
    def folder(self) -> Path | None:
        """Where its files are: its own folder or, of a model of the Hub, that of the commit in the cache."""
        if self.source is not None and not self.is_of_hub:
            return Path(self.source)
        origin = self.pipeline.unet.config.get("_name_or_path")
        return Path(origin).parent if origin else None

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of the images in pixels."""
        height, width = self.network_size
        config = self.pipeline.config
        return config.output_width or width, config.output_height or height

    @property
    def network_size(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        size = self.pipeline.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def mode(self) -> str:
        """PIL's name for the images' channels."""
        return "L" if self.pipeline.unet.config.in_channels == 1 else "RGB"

    @property
    def timesteps(self) -> int:
        """T of the training process."""
        return self.pipeline.scheduler.config.num_train_timesteps

    @property
    def call_rows(self) -> int:
        """Images of one call of the network that cost about as much as fewer would, or are the most it should take.

        In half precision a call is padded to so many anyway; in float32 a CPU takes as long as there are images.
        """
        device = self.pipeline.unet.device.type
        return HALF_PRECISION_BATCH.get(device, HALF_PRECISION_BATCH_ELSEWHERE)

    @property
    def row_bytes(self) -> int:
        """Bytes that a run holds for an image between two calls of the network: about eight tensors in float32."""
        height, width = self.network_size
        return 8 * 4 * self.pipeline.unet.config.in_channels * height * width

    @property
    def sharing_helps(self) -> bool:
        """Whether a call for the images of two visitors is cheaper than two calls."""
        unet = self.pipeline.unet
        return unet.device.type != "cpu" or unet.dtype.itemsize < 4


class Models:
    """Models by name. The first is loaded already and stays; the others come and go.

    Args:
        first: the default.
        others: what ``load`` takes, Hub ids and folders: nothing else can be chosen.
        load: such as ``load_pipeline``.
        max_bytes: of weights in memory; the least recently used go first. The one that is asked for is always loaded.
    """

    def __init__(
        self,
        first: Model,
        others: Sequence[str] = (),
        load: Callable[[str], MyDDPMPipeline] | None = None,
        max_bytes: int = MAX_MEMORY,
    ):
        self.first, self.max_bytes = first, max_bytes
        self._load = load
        self._sources = {public_name(source): source for source in others}
        self._sources.pop(first.name, None)
        self._loaded: OrderedDict[str, Model] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        return [self.first.name, *self._sources]

    def check(self, name) -> str:
        """The name of a model that may be chosen, from a value of any type; None is the first.

        Raises:
            UserError: for any other.
        """
        if name is None or name == "":
            return self.first.name
        if not isinstance(name, str) or name not in self.names:
            hint = nearest(name[:80], self.names) if isinstance(name, str) else f"known are {', '.join(self.names)}."
            raise UserError(f"there is no such model here; {hint}")
        return name

    def loaded(self, name: str) -> Model | None:
        """The model if it is in memory."""
        return self.first if name == self.first.name else self._loaded.get(name)

    def get(self, name: str | None = None) -> Model:
        """The model, loaded if need be, which takes seconds.

        Raises:
            UserError: if it cannot be loaded, or is none of these.
        """
        name = self.check(name)
        if name == self.first.name:
            return self.first
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._load_named(name)
            self._loaded.move_to_end(name)
            self._make_room()
            return self._loaded[name]

    def in_fork(self, name: str) -> Model:
        """The model, in a process that was forked from the one that chose it: a lock may be held there for ever."""
        return self.loaded(name) or self._load_named(name)

    def _load_named(self, name: str) -> Model:
        source = self._sources[name]
        try:
            return Model(name, self._load(source), source)
        except UserError as error:
            raise UserError(str(error).replace(source, name)) from None  # the server's paths are private

    def _make_room(self):
        """Drop models until the rest fits. One at work keeps its network alive until it is done."""
        while len(self._loaded) > 1 and self._used() > self.max_bytes:
            self._loaded.popitem(last=False)

    def _used(self) -> int:
        return self.first.num_bytes + sum(model.num_bytes for model in self._loaded.values())
