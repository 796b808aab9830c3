"""The training loop: loss, optimizer step, weight average, and one state that resumes to the bit.

Nothing random is kept between steps. The order of the images is a function of (seed, epoch), noise and timesteps of
(seed, rank, step), so the state of a run is its weights, its optimizer, its average and one integer.
"""

import contextlib
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ddpm_hf.config import TrainConfig
from ddpm_hf.data import ImageData, indices_of_step, load_images, mixed_seed
from ddpm_hf.devices import best_device, bf16_is_faster
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.figures import make_grid
from ddpm_hf.hub import checkpoints_of, export_pipeline
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.samplers import make_scheduler
from ddpm_hf.scheduler import MyDDPMScheduler
from ddpm_hf.unet import MyUNet

# settings that change what a run writes, not the weights it ends with
FREE_SETTINGS = {
    "output_dir",
    "logging_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "sample_steps",
    "num_samples",
    "max_memory_gb",
}


@dataclass
class TrainState:
    """All that a run has to remember: everything else follows from the config and ``step``."""

    unet: MyUNet
    optimizer: torch.optim.Optimizer
    ema: EMAModel
    num_processes: int = 1
    scaler: torch.amp.GradScaler | None = None  # only for fp16
    step: int = 0

    def save(self, folder: Path, ema_pipeline: MyDDPMPipeline):
        """Write the state as ``folder``, which appears whole or not at all.

        The averaged weights are kept as an exported pipeline, so that every checkpoint can be sampled from.
        """
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_contiguous(self.unet.state_dict()), partial / "unet.safetensors")
        torch.save(self.optimizer.state_dict(), partial / "optimizer.pt")
        scaler = self.scaler and self.scaler.state_dict()
        counters = {"step": self.step, "num_processes": self.num_processes, "scaler": scaler}
        (partial / "state.json").write_text(json.dumps(counters))
        export_pipeline(partial / "pipeline", ema_pipeline)
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        _sync(folder.parent)

    def load(self, folder: Path):
        """Restore what ``save`` wrote.

        Raises:
            UserError: if it is not whole, or of another number of processes, whose noise would be another.
        """
        try:
            counters = json.loads((folder / "state.json").read_text())
            self._restore(folder, counters)
        except Exception as error:  # safetensors, torch, json and the system each raise their own
            raise UserError(
                f"checkpoint {folder} cannot be read ({one_line(error)}); delete it to resume from an older one."
            ) from error
        if counters["num_processes"] != self.num_processes:
            raise UserError(
                f"{folder} is of a run of {counters['num_processes']} process(es), this one has "
                f"{self.num_processes}, and noise belongs to a process; resume it with as many."
            )

    def _restore(self, folder: Path, counters: dict):
        device = self.unet.device
        self.unet.load_state_dict(load_file(folder / "unet.safetensors"))
        average = load_file(folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors", device=str(device))
        self.ema.shadow_params = [average[name] for name, _ in self.unet.named_parameters()]
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location=device, weights_only=True))
        if self.scaler is not None and counters["scaler"]:
            self.scaler.load_state_dict(counters["scaler"])
        self.step = self.ema.optimization_step = counters["step"]


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _sync(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- building the parts


def build_unet(config: TrainConfig, data: ImageData) -> MyUNet:
    """The network of a run, its channels and classes taken from the data."""
    if config.class_conditional and data.labels is None:
        raise UserError(f"class_conditional needs labels, and data set {config.dataset!r} has none.")
    return _built(
        MyUNet,
        sample_size=config.sample_size,
        in_channels=data.num_channels,
        out_channels=data.num_channels,
        block_out_channels=config.block_out_channels,
        num_train_timesteps=config.num_train_timesteps,
        time_embed_dim=config.time_embed_dim,
        attention_levels=config.attention_levels,
        num_attention_heads=config.num_attention_heads,
        feed_forward_dim=config.feed_forward_dim,
        norm_num_groups=config.norm_num_groups,
        residual=config.residual,
        normalize_input=config.normalize_input,
        num_class_embeds=data.num_classes if config.class_conditional else None,
        dropout=config.dropout,
    )


def build_scheduler(config: TrainConfig) -> MyDDPMScheduler:
    """The diffusion process of a run."""
    return _built(
        MyDDPMScheduler,
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        variance_type=config.variance_type,
        prediction_type=config.prediction_type,
        rescale_betas_zero_snr=config.rescale_betas_zero_snr,
    )


def _built(component: type, **settings):
    """``component(**settings)``, its complaint a UserError."""
    try:
        return component(**settings)
    except ValueError as error:
        raise UserError(str(error)) from None


def build_ema(config: TrainConfig, unet: MyUNet) -> EMAModel:
    """The average of the weights, with decay 1 - (1 + step / inv_gamma)^-power up to its maximum."""
    return EMAModel(
        unet.parameters(),
        decay=config.ema_max_decay,
        use_ema_warmup=True,
        inv_gamma=config.ema_inv_gamma,
        power=config.ema_power,
        foreach=True,
    )


def build_pipeline(config: TrainConfig, data: ImageData, unet: MyUNet) -> MyDDPMPipeline:
    """The pipeline that a run exports."""
    names = data.label_names if config.class_conditional else None
    return MyDDPMPipeline(
        unet,
        build_scheduler(config),
        id2label=None if names is None else {str(i): name for i, name in enumerate(names)},
        output_height=data.output_size[0],
        output_width=data.output_size[1],
    )


# ---- one step


def learning_rate_at(config: TrainConfig, step: int, total_steps: int) -> float:
    """Linear warm-up over ``lr_warmup_steps``, then the chosen decay to zero at ``total_steps``."""
    warmup = min(config.lr_warmup_steps, total_steps // 2)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    factor = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[config.lr_scheduler]
    return config.learning_rate * factor


def diffusion_loss(
    unet: torch.nn.Module,
    scheduler: MyDDPMScheduler,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    generator: torch.Generator,
    *,
    class_dropout_prob: float = 0.1,
    null_label: int | None = None,
    loss_type: str = "simple",
) -> torch.Tensor:
    """The seed's loss at random timesteps, a scalar (Ho et al. 2020, equation 14, or 12 where "weighted").

    images: (B, C, S, S) in [-1, 1]; labels: (B,) or None; generator: source of noise, timesteps and label dropout.
    """
    device, batch = images.device, len(images)
    noise = torch.randn(images.shape, generator=generator, device=device)
    timesteps = torch.randint(0, len(scheduler), (batch,), generator=generator, device=device)
    if null_label is not None:
        dropped = torch.rand(batch, generator=generator, device=device) < class_dropout_prob
        labels = torch.where(dropped, null_label, labels)
    else:
        labels = None
    noisy = scheduler.add_noise(images, noise, timesteps).contiguous(memory_format=torch.channels_last)
    prediction = unet(noisy, timesteps, labels, return_dict=False)[0].float()
    target = scheduler.training_target(images, noise, timesteps)
    losses = F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))  # (B,)
    if loss_type == "weighted":
        losses = losses * scheduler.loss_weight(timesteps)
    return losses.mean()


class Trainer:
    """One run: ``Trainer(config).train()`` trains, or resumes, and exports.

    Raises:
        UserError: for settings that do not fit the data, the processes or the run found in ``output_dir``.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        self.folder = Path(config.output_dir)
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"output_dir {self.folder} is a file; a folder would be right.")
        if config.mixed_precision == "fp16" and best_device().type == "cpu":
            raise UserError("mixed_precision fp16 needs a GPU; bf16 or no would be right here.")
        self.accelerator = Accelerator(mixed_precision=self._precision())
        self.data = load_images(
            config.dataset,
            split=config.dataset_split,
            config_name=config.dataset_config,
            revision=config.dataset_revision,
            image_column=config.image_column,
            label_column=config.label_column,
            label_names=config.label_names,
            max_images=config.max_images,
            sample_size=config.sample_size,
            resize=config.resize,
            max_memory_gb=config.max_memory_gb,
        )
        self.parts = config.gradient_accumulation_steps
        slices = self.parts * self.accelerator.num_processes
        if config.train_batch_size % slices:
            raise UserError(
                f"train_batch_size={config.train_batch_size} must be a multiple of {slices}: "
                f"{self.accelerator.num_processes} processes x {self.parts} accumulation steps."
            )
        self.total_steps = config.total_steps(len(self.data))
        self.scheduler = build_scheduler(config)

        torch.manual_seed(mixed_seed(config.seed))
        unet = build_unet(config, self.data).to(self.accelerator.device, memory_format=torch.channels_last)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(
            [parameter for parameter in unet.parameters() if parameter.requires_grad],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            fused=True,
        )
        self.model, optimizer = self.accelerator.prepare(unet, optimizer)
        self.state = TrainState(
            unet, optimizer, build_ema(config, unet), self.accelerator.num_processes, self.accelerator.scaler
        )

    # ---- the loop

    def train(self) -> Path:
        """Train to the end and return the folder of the exported pipeline."""
        self._start()
        config, state = self.config, self.state
        progress = tqdm(
            initial=state.step, total=self.total_steps, unit="step", disable=not self.accelerator.is_main_process
        )
        losses, since = [], time.perf_counter()
        while state.step < self.total_steps:
            losses.append(self._train_step())
            progress.update()
            last = state.step == self.total_steps
            if last or state.step % config.logging_steps == 0:
                seconds = time.perf_counter() - since
                self._log(torch.stack(losses).mean(), len(losses) * config.train_batch_size / seconds, progress)
                losses, since = [], time.perf_counter()
            if last or state.step % config.checkpointing_steps == 0:
                self._checkpoint()
            if last or state.step % config.sample_steps == 0:
                self._sample()
        progress.close()
        return self._export()

    def _train_step(self) -> torch.Tensor:
        """One optimizer step and one step of the average; returns this process's loss."""
        config, state, accelerator = self.config, self.state, self.accelerator
        rank = accelerator.process_index
        generator = torch.Generator(accelerator.device)
        generator.manual_seed(mixed_seed(config.seed, rank, state.step))
        torch.manual_seed(mixed_seed(config.seed, rank, state.step, 1))  # dropout

        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(config, state.step, self.total_steps)
        self.model.train()
        total = torch.zeros((), device=accelerator.device)
        indices = indices_of_step(config.seed, state.step, config.train_batch_size, len(self.data))
        share = indices.reshape(accelerator.num_processes, self.parts, -1)[rank]
        for part, part_indices in enumerate(share):
            with accelerator.no_sync(self.model) if part < self.parts - 1 else contextlib.nullcontext():
                loss = self._loss(part_indices, generator) / self.parts
                accelerator.backward(loss)
            total += loss.detach()
        accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.ema.step(state.unet.parameters())
        state.step += 1
        return total

    def _loss(self, indices, generator) -> torch.Tensor:
        device = self.accelerator.device
        images, labels = self.data.batch(indices)
        images = images.to(device, memory_format=torch.channels_last)
        with self.accelerator.autocast():
            return diffusion_loss(
                self.model,
                self.scheduler,
                images,
                None if labels is None else labels.to(device),
                generator,
                class_dropout_prob=self.config.class_dropout_prob,
                null_label=self.state.unet.config.num_class_embeds,
                loss_type=self.config.loss_type,
            )

    # ---- starting and resuming

    def _precision(self) -> str:
        """The precision asked for; "auto" is what the run was started with, or bf16 where it is faster."""
        if self.config.mixed_precision != "auto":
            return self.config.mixed_precision
        return self._settings_before().get("mixed_precision") or ("bf16" if bf16_is_faster() else "no")

    def _settings_before(self) -> dict:
        """The settings of the run found in ``output_dir``; {} if there is none."""
        if not checkpoints_of(self.folder):
            return {}
        path = self.folder / "config.yaml"
        try:
            settings = yaml.safe_load(path.read_text())
        except (OSError, ValueError, yaml.YAMLError):
            settings = None
        if not isinstance(settings, dict):
            raise UserError(f"{self.folder} has checkpoints but no readable config.yaml; choose another output_dir.")
        return settings

    def _start(self):
        """Prepare ``output_dir``, or resume from its newest checkpoint."""
        checkpoints = checkpoints_of(self.folder)
        if checkpoints:
            self._refuse_other_run()
            self.state.load(checkpoints[-1])
        if self.accelerator.is_main_process:
            (self.folder / "samples").mkdir(parents=True, exist_ok=True)
            accelerator = self.accelerator
            settings = self.config.model_copy(update={"mixed_precision": accelerator.mixed_precision})
            settings.save(self.folder / "config.yaml")
            self._forget_metrics_after(self.state.step)
        self.accelerator.wait_for_everyone()
        parameters = sum(parameter.numel() for parameter in self.state.unet.parameters())
        self.accelerator.print(
            f"{'resuming at step ' + str(self.state.step) if checkpoints else 'training'}: {len(self.data):,} images "
            f"of {self.data.num_channels}x{self.config.sample_size}x{self.config.sample_size}, {parameters:,} "
            f"parameters, {self.total_steps:,} steps of {self.config.train_batch_size} images, "
            f"{self.accelerator.num_processes} process(es) on {self.accelerator.device.type}, "
            f"precision {self.accelerator.mixed_precision}, in {self.folder}"
        )

    def _refuse_other_run(self):
        """A run resumes only with the settings it was started with, but for those that do not change its result."""
        before = self._settings_before()
        now = self.config.model_dump(mode="json")
        for name, value in now.items():
            same = value == before.get(name, value) or (name == "mixed_precision" and value == "auto")
            if not same and name not in FREE_SETTINGS:
                raise UserError(
                    f"{self.folder} holds a run with {name}={before[name]}, not {value}; use the same settings to "
                    f"resume it, or another output_dir for a new run."
                )

    def _forget_metrics_after(self, step: int):
        """Drop the lines that an interrupted run wrote after its last checkpoint: they will be written again."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line).get("step", step + 1) <= step]
        path.write_text("".join(f"{line}\n" for line in kept))

    # ---- what a run writes

    def _log(self, loss: torch.Tensor, images_per_second: float, progress: tqdm):
        loss = self.accelerator.reduce(loss, "mean").item()
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self.state.step}; a lower learning_rate than "
                f"{self.config.learning_rate} would be right."
            )
        if not self.accelerator.is_main_process:
            return
        step, images_seen = self.state.step, self.state.step * self.config.train_batch_size
        record = {
            "step": step,
            "images_seen": images_seen,
            "epoch": round(images_seen / len(self.data), 4),
            "loss": loss,
            "lr": self.state.optimizer.param_groups[0]["lr"],
            "images_per_second": round(images_per_second, 2),
            "ema_decay": self.state.ema.cur_decay_value,
        }
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        progress.set_postfix(loss=f"{loss:.4f}", images_s=f"{images_per_second:.0f}", epoch=f"{record['epoch']:.2f}")

    def _checkpoint(self):
        if self.accelerator.is_main_process:
            self.state.save(self.folder / "checkpoints" / f"step-{self.state.step}", self._ema_pipeline())
            for old in checkpoints_of(self.folder)[: -self.config.checkpoints_total_limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _ema_pipeline(self) -> MyDDPMPipeline:
        unet = MyUNet.from_config(self.state.unet.config)
        self.state.ema.copy_to(unet.parameters())
        return build_pipeline(self.config, self.data, unet.eval().to(self.accelerator.device))

    def _sample(self):
        """A grid from the average's weights, from the same noise every time; columns are classes where there are."""
        if self.accelerator.is_main_process:
            pipeline = self._ema_pipeline()
            pipeline.scheduler = make_scheduler("dpm", pipeline.scheduler)
            pipeline.set_progress_bar_config(disable=True)
            count, classes = self.config.num_samples, pipeline.num_classes
            labels = None if classes is None else [i % classes for i in range(count)]
            with self.accelerator.autocast():
                images = pipeline(count, labels, num_inference_steps=min(20, len(self.scheduler)), seed=0).images
            columns = classes if classes and classes <= count else None
            make_grid(images, columns).save(self.folder / "samples" / f"step-{self.state.step:07d}.png")
        self.accelerator.wait_for_everyone()

    def _export(self) -> Path:
        folder = self.folder / "pipeline"
        if self.accelerator.is_main_process:
            export_pipeline(folder, self._ema_pipeline())
        self.accelerator.wait_for_everyone()
        self.accelerator.print(f"exported {folder}; python -m ddpm_hf sample {folder} --output grid.png shows pictures")
        return folder
