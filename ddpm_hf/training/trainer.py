"""The training loop, for one process or many, from its start or from where it was.

Nothing random is kept between steps. The order of the images is a function of (seed, epoch), noise and timesteps of
(seed, step), so the state of a run is its weights, its optimizer, its averages and a few counters.
"""

import contextlib
import math
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    TorchDynamoPlugin,
    broadcast_object_list,
    gather_object,
)
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ddpm_hf.checkpoints import checkpoints_of, newest_whole, rotate, set_aside_after, step_of
from ddpm_hf.config import TrainConfig
from ddpm_hf.data import Source, mixed_seed, open_data, open_stream
from ddpm_hf.devices import best_device, bf16_is_faster, keep_freed_memory
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.files import write_whole
from ddpm_hf.hub import export_pipeline, is_replaceable, weights_name
from ddpm_hf.report import keep_facts, write_report
from ddpm_hf.stopping import StopRequested, StopSignal
from ddpm_hf.training.feed import ArrayFeed, StreamFeed
from ddpm_hf.training.loss import Draw, diffusion_loss
from ddpm_hf.training.metrics import Metrics
from ddpm_hf.training.parts import (
    build_averages,
    build_optimizer,
    build_scheduler,
    build_unet,
    exported_pipeline,
    learning_rate_at,
)
from ddpm_hf.training.pictures import fast_pipeline, sample_grid
from ddpm_hf.training.pushing import Pushes, problem_with
from ddpm_hf.training.resuming import agree_on_checkpoint, compare_runs, refuse_changes, settings_before
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.telling import commit_of_code, facts, first_line, unused_settings
from ddpm_hf.training.tracking import Trackers, trackers_for
from ddpm_hf.training.validation import Validation

PATIENCE = timedelta(hours=1)  # of the ranks, with the one that writes
EXPLODED = 100  # times the usual squared error; a batch of one image at timestep 0 reaches 30


class Trainer:
    """One run: ``Trainer(config).train()`` trains, or resumes, and exports.

    Args:
        config: the run's settings.
        stop: tells of SIGTERM and SIGINT; None is one that never does.
        settings_from: where the settings come from, in words, for the model card.

    Raises:
        UserError: for settings that do not fit the data, the processes or the run found in ``output_dir``.
    """

    def __init__(self, config: TrainConfig, stop: StopSignal | None = None, settings_from: str | None = None):
        self.config, self.stop, self.settings_from = config, stop or StopSignal(), settings_from
        self.folder = Path(config.output_dir)
        self.metrics = Metrics(self.folder)
        self._refuse_impossible()
        names = trackers_for(config.report_to)
        self.accelerator = self._accelerator(names)
        self.trackers = Trackers(self.accelerator, self.folder, names)
        self.parts = self._check_batch()
        self.data, self.validation_data = self._open_data()
        self.scheduler = build_scheduler(config)

        torch.manual_seed(mixed_seed(config.seed))
        unet = build_unet(config, self.data).to(self.accelerator.device, memory_format=torch.channels_last)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.model, optimizer = self.accelerator.prepare(unet, build_optimizer(config, unet))
        self.state = TrainState(
            unet,
            optimizer,
            build_averages(config, unet),
            self.accelerator.scaler,
            num_processes=self.accelerator.num_processes,
            fingerprint=self.data.fingerprint,
        )
        self.feed = self._feed()
        self.validation = self.validation_data and Validation(
            self.validation_data, self.scheduler, config.seed, self.accelerator
        )
        self.score = self._score() if config.score_features else None
        self.total_steps = config.max_train_steps or config.total_steps(len(self.data))
        self._saved_step: int | None = None
        self._pushes: Pushes | None = None
        self._lock: FileLock | None = None
        self._started = time.perf_counter()

    # ---- putting it together

    def _refuse_impossible(self):
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"output_dir {self.folder} is a file; a folder would be right.")
        if (self.folder / "pipeline").exists() and not is_replaceable(self.folder / "pipeline"):
            raise UserError(f"{self.folder / 'pipeline'} is in the way: the run's pipeline is to be written there.")
        if self.config.mixed_precision == "fp16" and best_device().type == "cpu":
            raise UserError("mixed_precision fp16 needs a GPU; bf16 or no would be right here.")

    def _accelerator(self, trackers: list[str]) -> Accelerator:
        mode = self.config.torch_compile
        compilation = None if mode == "no" else TorchDynamoPlugin(backend="inductor", mode=mode, dynamic=False)
        accelerator = Accelerator(
            mixed_precision=self._precision(),
            # ours are ``parts``; without this, an environment variable of Accelerate's would divide gradients again
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_plugin=compilation,
            log_with=trackers or None,
            project_dir=str(self.folder),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise UserError(
                f"{accelerator.distributed_type.value} is not supported: every process holds the whole network; "
                f"accelerate launch --multi_gpu would be right."
            )
        return accelerator

    def _precision(self) -> str:
        """The precision asked for; "auto" is what the run was started with, or bf16 where it is faster."""
        if self.config.mixed_precision != "auto":
            return self.config.mixed_precision
        if before := settings_before(self.folder).get("mixed_precision"):
            return before
        found = "bf16" if bf16_is_faster() else "no"
        if best_device().type != "cpu":
            return found
        PartialState(cpu=True, timeout=PATIENCE)  # before the Accelerator, for its processes to agree:
        return broadcast_object_list([found])[0]  # on a busy machine one would measure this, another that

    def _check_batch(self) -> int:
        """The parts that a rank splits its share of a batch into."""
        parts, ranks = self.config.gradient_accumulation_steps, self.accelerator.num_processes
        if self.config.train_batch_size % (parts * ranks):
            raise UserError(
                f"train_batch_size={self.config.train_batch_size} must be a multiple of {parts * ranks}: "
                f"{ranks} processes x {parts} accumulation steps."
            )
        return parts

    def _open_data(self):
        config, accelerator = self.config, self.accelerator
        sources = [Source(**source.model_dump()) for source in config.sources]
        options = {
            "sample_size": config.sample_size,
            "image_mode": config.image_mode,
            "resize": config.resize,
            "on_bad_image": config.on_bad_image,
            "max_images": config.max_images,
            "max_memory_gb": config.max_memory_gb,
            "validation_split": config.validation_split,
            "validation_images": config.validation_images,
            "seed": config.seed,
        }
        if not config.streaming:
            return open_data(sources, **options)
        return open_stream(
            sources[0],
            shuffle_buffer_size=config.shuffle_buffer_size,
            rank=accelerator.process_index,
            num_processes=accelerator.num_processes,
            **options,
        )

    def _feed(self) -> ArrayFeed | StreamFeed:
        ranks = self.accelerator.num_processes
        if self.config.streaming:
            return StreamFeed(self.data, self.config.train_batch_size // ranks)
        return ArrayFeed(
            self.data, self.config.seed, self.config.train_batch_size, self.accelerator.process_index, ranks
        )

    def _score(self):
        from ddpm_hf.training.score import FrechetScore  # needs packages that other runs do without

        config, data = self.config, self.validation_data or self.data
        return FrechetScore(config.score_features, data, config.score_images, self.accelerator)

    # ---- the loop

    def train(self) -> Path | None:
        """Train to the end and return the folder of the exported pipeline, or None if asked to stop before.

        Raises:
            UserError: if the loss explodes, the disk is full, or the run cannot be resumed.
        """
        self.stop.begin()
        try:
            self.stop.check()
            self._start()
            self._loop()
            return self._finish()
        except StopRequested:
            self._pause()
            return None
        finally:
            if self._pushes is not None:
                self._pushes.end()
            if self._lock is not None:
                self._lock.release()

    def _loop(self):
        state, config, stop = self.state, self.config, self.stop
        bar = tqdm(initial=state.step, total=self.total_steps, unit="step", disable=not self._is_main)
        with bar:
            while True:
                if self._is_due(config.checkpointing_steps):
                    self._checkpoint()
                if self._is_due(config.logging_steps, *self._measuring_intervals()):
                    self._log(bar)
                if self._is_due(config.sample_steps):
                    self._sample()
                self._push()
                if self._is_last:
                    if not self._is_sound():
                        self._give_up(math.nan)
                    return
                stop.check()
                self.train_step()
                bar.update()

    def _measuring_intervals(self) -> list[int]:
        """Steps between the losses and scores that get a line of their own."""
        config = self.config
        return [config.validation_steps] * bool(self.validation) + [config.score_steps] * bool(self.score)

    def _is_due(self, *intervals: int) -> bool:
        """Whether the step is a multiple of one of the intervals, or the last."""
        step = self.state.step
        return step > 0 and (self._is_last or any(step % every == 0 for every in intervals))

    @property
    def _is_last(self) -> bool:
        return self.state.step >= self.total_steps

    def train_step(self):
        """One optimizer step and one step of the averages, or, where the loss explodes, none."""
        config, state, progress = self.config, self.state, self.state.progress
        start = time.perf_counter()
        torch.manual_seed(mixed_seed(config.seed, self._rank, state.step, 1))  # dropout
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(config, state.step, self.total_steps)

        loss, error, norm = self._gradients()
        if self._is_bad(loss, error, norm):
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()  # forgets the gradients it has unscaled
            progress.count_skipped(bad=True)
        else:
            state.optimizer.step()
            if not math.isfinite(norm):  # fp16's scaler has made nothing of the step
                progress.count_skipped(bad=False)
            else:
                state.average_step()
                progress.count_good(loss, error, norm)
        state.optimizer.zero_grad()
        progress.seconds += time.perf_counter() - start
        if progress.bad_steps > config.max_bad_steps:
            self._give_up(loss)

    def _gradients(self) -> tuple[float, float, float]:
        """Leave the clipped gradients of this step; returns the loss, the unweighted error and the gradients' norm."""
        accelerator = self.accelerator
        images, labels = self.feed.batch(self.state.step)
        draw = self._draw()
        self.model.train()
        sums = torch.zeros(2, device=accelerator.device)
        size = len(images) // self.parts
        for i in range(self.parts):
            part = slice(i * size, (i + 1) * size)
            with accelerator.no_sync(self.model) if i < self.parts - 1 else contextlib.nullcontext():
                loss, error = self._loss(images[part], None if labels is None else labels[part], draw[part])
                accelerator.backward(loss / self.parts)
            sums += torch.stack((loss.detach(), error)) / self.parts
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        loss, error = accelerator.reduce(sums, "mean").tolist()
        return loss, error, norm.item()

    def _draw(self) -> Draw:
        """This rank's share of the step's random numbers, which are drawn for the whole batch."""
        config, data, accelerator = self.config, self.data, self.accelerator
        generator = torch.Generator(accelerator.device)
        generator.manual_seed(mixed_seed(config.seed, self.state.step))
        shape = (config.train_batch_size, data.num_channels, config.sample_size, config.sample_size)
        draw = Draw.of(
            shape,
            len(self.scheduler),
            generator,
            class_dropout_prob=config.class_dropout_prob,
            flip_prob=0.5 if config.horizontal_flip else 0.0,
        )
        share = config.train_batch_size // accelerator.num_processes
        return draw[accelerator.process_index * share : (accelerator.process_index + 1) * share]

    def _loss(self, images: torch.Tensor, labels: torch.Tensor | None, draw: Draw):
        device, conditional = self.accelerator.device, self.config.class_conditional
        pixels = images.to(device, non_blocking=True).float() / 127.5 - 1
        with self.accelerator.autocast():
            return diffusion_loss(
                self.model,
                self.scheduler,
                pixels,
                labels.to(device, non_blocking=True) if conditional else None,
                draw,
                null_label=self.data.num_classes if conditional else None,
                loss_type=self.config.loss_type,
                snr_gamma=self.config.snr_gamma,
            )

    def _is_bad(self, loss: float, error: float, norm: float) -> bool:
        """Whether a step must not be taken. All ranks see the same numbers."""
        if not math.isfinite(loss):
            return True
        if not math.isfinite(norm):
            return self.accelerator.scaler is None  # which looks for these itself and lowers its scale
        usual = self.state.progress.usual_error
        return usual is not None and error > EXPLODED * usual

    def _is_sound(self) -> bool:
        """Whether the state is worth keeping: in a row of bad steps it is unless the weights are what is wrong."""
        if not self.state.progress.bad_steps:
            return True
        return all(torch.isfinite(parameter).all() for parameter in self.state.unet.parameters())

    def _give_up(self, loss: float):
        kept = checkpoints_of(self.folder)
        where = f"the last good state is {kept[-1]}; go on" if kept else "there is no checkpoint yet; start"
        raise UserError(
            f"the loss was not finite, or {EXPLODED} times the usual, for {self.state.progress.bad_steps} steps in a "
            f"row (at step {self.state.step} it is {loss:.4g}); {where} with a lower learning_rate than "
            f"{self.config.learning_rate:g}{' and --resume force' if kept else ''}."
        )

    # ---- starting and resuming

    def _start(self):
        """Prepare ``output_dir``, or resume from its newest whole checkpoint."""
        self._refuse_to_push()
        self._occupy()
        checkpoint = agree_on_checkpoint(self.folder, self.accelerator)
        if checkpoint is not None:
            self._resume(checkpoint)
        self._on_main(self._prepare_folder)
        if self._is_main and self.config.push_to_hub:
            self._pushes = Pushes(self.config, tqdm.write)
            self._pushes.begin()
        self.trackers.start(self.config.model_dump(mode="json"))
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        self.accelerator.print(first_line(self, resumed=checkpoint is not None))
        if warning := unused_settings(self.config):
            self.accelerator.print(f"warning: {warning}")

    def _refuse_to_push(self):
        """Tell now what would otherwise be told when the run is done."""
        commit_of_code()  # as it is now; cached
        if not self.config.push_to_hub:
            return
        if self.config.hub_strategy == "best" and self.validation is None:
            raise UserError("hub_strategy best goes by the validation loss, and there are no images to validate on.")
        if problem := self._agree_on(problem_with(self.config) if self._is_main else None):
            raise UserError(problem)

    def _prepare_folder(self):
        """Clear away what an interrupted run left behind, and write the settings."""
        samples = self.folder / "samples"
        samples.mkdir(exist_ok=True)
        for leftover in samples.glob(".step-*"):
            leftover.unlink()
        set_aside_after(self.folder, self.state.step)
        settings = self.config.model_copy(update={"mixed_precision": self.accelerator.mixed_precision})
        settings.save(self.folder / "config.yaml")
        self.metrics.forget_after(self.state.step)

    def _on_main(self, action: Callable[[], object]):
        """Let the main process do what can fail for a full disk, and end all ranks with one line if it does."""
        failure = None
        if self._is_main:
            try:
                action()
            except UserError as error:
                failure = str(error).removesuffix(".")
            except OSError as error:
                failure = f"{error.filename or self.folder}: {error.strerror or error}"
        if failure := self._agree_on(failure):
            kept, _ = newest_whole(self.folder)
            where = f"the newest whole checkpoint is {kept.name}" if kept else "there is no checkpoint yet"
            raise UserError(f"{failure}; {where}. Once that is mended, the same command goes on.")

    def _occupy(self):
        """Take ``output_dir`` for this run; the lock goes with the process, however it ends."""
        taken = False
        self._on_main(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        if self._is_main:
            try:
                self._lock = FileLock(self.folder / ".lock", blocking=False)
                self._lock.acquire()
            except Timeout:
                taken = True
        if self._agree_on(taken):
            raise UserError(f"another run is training in {self.folder}; wait for it, or choose another output_dir.")

    def _resume(self, checkpoint: Path):
        """Go on from ``checkpoint``, if it is of this run."""
        if changes := refuse_changes(self.config, self.folder):
            self.accelerator.print(f"resuming with changed settings: the run had {'; '.join(changes)}.")
        saved = self.state.load(checkpoint)
        self._saved_step = self.state.step
        ranks = self.accelerator.num_processes
        if warning := compare_runs(saved, self.config, self.state.fingerprint, ranks):
            self.accelerator.print(f"warning: {warning}")
        if self.state.streams and len(self.state.streams) == ranks:
            self.feed.restore(self.state.streams[self._rank])

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.state.unet.parameters())

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def _rank(self) -> int:
        return self.accelerator.process_index

    # ---- what a run writes

    def _agree_on(self, value):
        """The main process's ``value``, on all ranks."""
        return broadcast_object_list([value if self._is_main else None])[0]

    def _checkpoint(self):
        """Write the state, unless it is there already or the loss is bad just now."""
        bad = self.state.progress.bad_steps and not (self._is_last and self._is_sound())
        if self._saved_step != self.state.step and not bad:
            self._save()

    def _save(self):
        state = self.state
        position = self.feed.state()
        state.streams = None if position is None else gather_object([position])
        self._count_wall_time()
        self._on_main(self._write_checkpoint)
        self._saved_step = state.step

    def _write_checkpoint(self):
        state = self.state
        pipeline = exported_pipeline(self.config, self.data, state.averaged_unet())
        state.save(self.folder / "checkpoints" / f"step-{state.step}", pipeline)
        keep_facts(self.folder, self._facts())  # for whoever pushes a run that goes on, or was killed
        rotate(self.folder, self.config.checkpoints_total_limit, self.best_step)

    @property
    def best_step(self) -> int | None:
        """The checkpoint with the lowest validation loss, if one was validated."""
        return self.metrics.best_step([step_of(folder) for folder in checkpoints_of(self.folder)])

    def _count_wall_time(self):
        now = time.perf_counter()
        self.state.progress.wall_seconds += now - self._started
        self._started = now

    def _log(self, bar: tqdm):
        """Write the line of this step, if it is not there yet, with a validation loss where one is due."""
        progress, config = self.state.progress, self.config
        if self._agree_on(self._is_main and self.metrics.has(self.state.step)):
            progress.start_line()
            return
        record = self._record()
        if self.validation and self._is_due(config.validation_steps):
            loss, means = self.validation(self.state.averaged_unet(), config.class_conditional, self.stop.check)
            record |= {"validation_loss": loss, "validation_loss_by_timestep": means}
        if self.score and self._is_due(config.score_steps):
            pipeline, steps = self._fast_pipeline()
            record["frechet_distance"] = self.score(pipeline, steps, self.stop.check)
        self._on_main(lambda: self.metrics.append(record))
        self.trackers.log(record)
        progress.start_line()
        shown = {name: record[name] for name in ("loss", "validation_loss") if record.get(name) is not None}
        epoch = {} if record["epoch"] is None else {"epoch": f"{record['epoch']:.2f}"}  # a stream has no count
        bar.set_postfix(
            {name.removesuffix("_loss"): f"{value:.4f}" for name, value in shown.items()} | epoch,
            images_s=f"{record['images_per_second']:.0f}",
        )

    def _record(self) -> dict:
        """The line of metrics.jsonl: means over the steps since the last one."""
        state, progress, batch = self.state, self.state.progress, self.config.train_batch_size
        count = progress.good_steps
        images_seen = state.step * batch
        return {
            "step": state.step,
            "images_seen": images_seen,
            "epoch": None if self.config.streaming else round(images_seen / len(self.data), 4),
            "loss": progress.loss_sum / count if count else None,
            "grad_norm": progress.norm_sum / count if count else None,
            "lr": learning_rate_at(self.config, state.step - 1, self.total_steps),
            "images_per_second": round(progress.logged_steps * batch / max(progress.seconds, 1e-9), 2),
            "ema_decay": state.ema_decay,
            "skipped_steps": progress.skipped_steps,
        }

    def _fast_pipeline(self):
        return fast_pipeline(self.config, self.data, self.state.averaged_unet())

    def _sample(self):
        """Write the grid of this step, if it is not there yet."""
        path = self.folder / "samples" / f"step-{self.state.step:07d}.png"
        if self._agree_on(self._is_main and path.exists()):
            return
        pipeline, steps = self._fast_pipeline()
        grid = sample_grid(pipeline, self.config.num_samples, steps, self.accelerator, self.stop.check)
        self._on_main(lambda: write_whole(path, grid.save))
        if self._is_main:
            self.trackers.log_grid(grid, self.state.step)

    def _push(self):
        """Begin the push that is due, and tell of those that are done. The last one is begun in the end."""
        if self._pushes is None:
            return
        self._pushes.poll()
        config, step = self.config, self.state.step
        if self._is_last:
            return
        if (
            config.hub_strategy == "every_save"
            and self._saved_step == step
            and self._is_due(config.checkpointing_steps)
        ):
            self._pushes.push(step, self._facts(), checkpoint=True)
        elif config.hub_strategy == "best" and self._is_due(config.validation_steps, config.checkpointing_steps):
            best = self.best_step
            if best not in (None, self._pushes.last_step):
                self._pushes.push(best, self._facts(), checkpoint=True)

    def _push_the_end(self):
        best = self.best_step if self.config.hub_strategy == "best" else None
        self._pushes.push(best or self.state.step, self._facts(), checkpoint=best is not None, last=True)

    def _facts(self) -> dict[str, str]:
        self._count_wall_time()
        return facts(self)

    # ---- the end

    def _pause(self):
        """Save the state of a run that was asked to stop, if it is worth keeping."""
        state = self.state
        if state.step == 0:
            self.accelerator.print(f"stopped before the first step ({self.stop.reason}); the same command goes on.")
            return
        if self._saved_step != state.step and not state.progress.bad_steps:
            self._save()
        self._report()
        kept = checkpoints_of(self.folder)
        where = f"the state is saved in {kept[-1]}" if kept else "there is no checkpoint yet"
        self.accelerator.print(
            f"stopped at step {state.step:,} of {self.total_steps:,} ({self.stop.reason}); {where}: the same command "
            f"goes on from there."
        )
        self.trackers.finish()
        if self._pushes is not None:
            self._pushes.finish(self.stop)

    def _finish(self) -> Path:
        folder = self.folder / "pipeline"
        self._on_main(self._write_pipeline)
        self._report()
        if self._pushes is not None:
            self._push_the_end()
        self.accelerator.print(f"exported {folder}; python -m ddpm_hf sample {folder} --output grid.png shows pictures")
        self.accelerator.wait_for_everyone()
        self.trackers.finish()  # ends the process group: nothing collective after it
        if self._pushes is not None:
            self._pushes.finish(self.stop)  # the other processes have gone
        return folder

    def _write_pipeline(self):
        pipeline = exported_pipeline(self.config, self.data, self.state.averaged_unet())
        weights = weights_name(self.config.ema_max_decays[0])
        export_pipeline(self.folder / "pipeline", pipeline, weights=weights)
        rotate(self.folder, self.config.checkpoints_total_limit, self.best_step)

    def _report(self):
        if self._is_main:
            defaults = TrainConfig.model_construct().model_dump(mode="json")
            try:
                write_report(self.folder, self._facts(), defaults=defaults)
            except Exception as error:  # a run of days does not fail for its last picture
                self.accelerator.print(f"warning: the report could not be written: {one_line(error)}")
