"""TrainState: all that a run has to remember, and how it is written and read."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from ddpm_hf.checkpoints import read_state, write_checkpoint
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.hub import export_pipeline

MOST_NAMED = 4  # tensors that an error names
USUAL_ERROR_RATE = 0.02  # of the running mean that tells an exploded error from a usual one


@dataclass
class Progress:
    """The counters of a run; sums are since the last line of metrics.jsonl."""

    step: int = 0
    images_seen: int = 0
    bad_steps: int = 0  # in a row
    skipped_steps: int = 0  # in all
    usual_error: float | None = None  # running mean of the unweighted error of good steps
    loss_sum: float = 0.0
    norm_sum: float = 0.0
    good_steps: int = 0
    logged_images: int = 0
    seconds: float = 0.0  # spent in optimizer steps
    wall_seconds: float = 0.0  # of the whole run, over all its starts

    def count_good(self, images: int, loss: float, error: float, norm: float):
        """Count a step that was taken with a batch of ``images``."""
        rate = USUAL_ERROR_RATE if self.usual_error is not None else 1.0
        self.usual_error = (1 - rate) * (self.usual_error or 0.0) + rate * error
        self.loss_sum += loss
        self.norm_sum += norm
        self.good_steps += 1
        self.bad_steps = 0
        self._count(images)

    def count_skipped(self, images: int, bad: bool):
        """Count a step that was not taken; ``bad`` ones in a row end a run, those of fp16's loss scale do not."""
        self.bad_steps += bad
        self.skipped_steps += 1
        self._count(images)

    def _count(self, images: int):
        self.step += 1
        self.images_seen += images
        self.logged_images += images

    def start_line(self):
        """Begin the sums of the next line."""
        self.loss_sum = self.norm_sum = self.seconds = 0.0
        self.good_steps = self.logged_images = 0


@dataclass
class TrainState:
    """Weights, optimizer, averages and counters: everything else follows from the config and the counters.

    averages: by their largest decay; the first is the one that checkpoints and the finished run export.
    streams: where each rank's data stream is, for streamed data only.
    """

    unet: torch.nn.Module
    optimizer: torch.optim.Optimizer
    averages: dict[str, EMAModel]
    scaler: torch.amp.GradScaler | None = None  # only for fp16
    progress: Progress = field(default_factory=Progress)
    num_processes: int = 1
    fingerprint: str = ""  # of the data
    streams: list | None = None

    @property
    def step(self) -> int:
        return self.progress.step

    @property
    def ema_decay(self) -> float:
        """The first average's decay at its last step."""
        average = next(iter(self.averages.values()))
        return average.get_decay(average.optimization_step)

    def average_step(self):
        """Let the averages follow the weights."""
        for average in self.averages.values():
            average.step(self.unet.parameters())

    def averaged_unet(self) -> torch.nn.Module:
        """A network of its own with the first average's weights, for evaluation."""
        unet = type(self.unet).from_config(self.unet.config)
        next(iter(self.averages.values())).copy_to(unet.parameters())
        return unet.eval().to(self.unet.device, memory_format=torch.channels_last)

    # ---- files

    def save(self, folder: Path, pipeline: DiffusionPipeline):
        """Write the state as ``folder``, which appears whole or not at all.

        pipeline: of the averaged network, so that every checkpoint can be sampled from.

        Raises:
            UserError: if the disk is full or cannot be written; what was there before is untouched.
        """
        try:
            write_checkpoint(folder, lambda partial: self._write(partial, pipeline))
        except Exception as error:  # safetensors, diffusers and the system each raise their own
            raise UserError(f"checkpoint {folder} could not be written: {one_line(error)}") from error

    def _write(self, folder: Path, pipeline: DiffusionPipeline):
        save_file(_contiguous(self.unet.state_dict()), folder / "unet.safetensors")
        save_file(_optimizer_tensors(self.optimizer), folder / "optimizer.safetensors")
        names = [name for name, _ in self.unet.named_parameters()]
        for decay, average in list(self.averages.items())[1:]:
            shadow = _contiguous(dict(zip(names, average.shadow_params, strict=True)))
            save_file(shadow, folder / f"ema-{decay}.safetensors")
        state = {
            "progress": asdict(self.progress),
            "num_processes": self.num_processes,
            "scaler": self.scaler and self.scaler.state_dict(),
            "fingerprint": self.fingerprint,
            "streams": self.streams,
            "ema_max_decays": list(self.averages),
        }
        (folder / "state.json").write_text(json.dumps(state))
        export_pipeline(folder / "pipeline", pipeline)

    def load(self, folder: Path) -> dict:
        """Restore what ``save`` wrote; returns the rest of it, for the caller to compare.

        Raises:
            UserError: if it does not fit this run's network, optimizer or averages.
        """
        try:
            saved = read_state(folder)
            self._restore(folder, saved)
        except Exception as error:  # safetensors, torch, json and the system each raise their own
            raise UserError(
                f"checkpoint {folder} does not fit this run ({one_line(error)}); use another output_dir."
            ) from error
        return saved

    def _restore(self, folder: Path, saved: dict):
        device = str(self.unet.device)
        weights = load_file(folder / "unet.safetensors", device=device)
        if differing := _differences(weights, self.unet.state_dict()):
            raise ValueError(f"its network differs in {len(differing)} tensors: {'; '.join(differing[:MOST_NAMED])}")
        self.unet.load_state_dict(weights)
        names = [name for name, _ in self.unet.named_parameters()]
        for decay, average in self.averages.items():
            tensors = load_file(average_file(folder, decay, saved), device=device)
            average.shadow_params = [tensors[name] for name in names]
        moments = load_file(folder / "optimizer.safetensors", device=device)
        if not moments and saved["progress"]["step"] > saved["progress"]["skipped_steps"]:
            raise ValueError("optimizer.safetensors is empty")
        _load_optimizer(self.optimizer, moments)
        if self.scaler is not None and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        known = {item.name for item in fields(Progress)}
        self.progress = Progress(**{name: value for name, value in saved["progress"].items() if name in known})
        for average in self.averages.values():
            average.optimization_step = self.progress.step - self.progress.skipped_steps
        self.streams = saved["streams"]


def average_file(checkpoint: Path, decay: str, saved: dict) -> Path:
    """The file with the weights of one of a checkpoint's averages.

    Raises:
        ValueError: if it has no such average.
    """
    decays = saved["ema_max_decays"]
    if decay not in decays:
        raise ValueError(f"its averages are of decay {', '.join(decays)}")
    if decay == decays[0]:
        return checkpoint / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    return checkpoint / f"ema-{decay}.safetensors"


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state by "index.name"; its settings come from the config."""
    state = optimizer.state_dict()["state"]
    return _contiguous({f"{i}.{name}": tensor for i, values in state.items() for name, tensor in values.items()})


def _differences(saved: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> list[str]:
    """What tells the network of a checkpoint from this run's, a line for each tensor."""
    shapes = ({name: "x".join(map(str, tensor.shape)) for name, tensor in part.items()} for part in (saved, own))
    there, here = shapes
    return [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in {**here, **there}
        if there.get(name) != here.get(name)
    ]


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]):
    state: dict[int, dict] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state.items():
        moments = [name for name in values if name != "step"]
        if index >= len(parameters) or any(values[name].shape != parameters[index].shape for name in moments):
            raise ValueError("the optimizer's state is that of another network or optimizer")
        for name in moments:
            # with the weights' own strides, channels_last: the fused kernel walks through memory, not through indices
            values[name] = torch.empty_like(parameters[index]).copy_(values[name])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
