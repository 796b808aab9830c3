"""The training loop, for one process or many, from its start or from where it was.

Nothing random is kept between steps. The next images are a function of (seed, images seen), noise and timesteps of
(seed, step), so the state of a run is its weights, its optimizer, its averages and a few counters.
"""

import math
import time
from pathlib import Path
from shlex import quote

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ddpm_hf.checkpoints import checkpoints_of, rotate, set_aside_after
from ddpm_hf.config import TrainConfig
from ddpm_hf.data import mixed_seed, open_data, open_stream
from ddpm_hf.devices import keep_freed_memory
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.hub import export_pipeline, weights_name
from ddpm_hf.ownership import PIPELINE, RUN, may_replace
from ddpm_hf.report import write_report
from ddpm_hf.run import Facts, RunFolder
from ddpm_hf.stopping import StopRequested, StopSignal
from ddpm_hf.text_encoders import TextEncoder
from ddpm_hf.training.batches import ImageBatches, StreamBatches
from ddpm_hf.training.build import build_averages, build_pipeline, build_scheduler, build_unet, exported_pipeline
from ddpm_hf.training.distill import load_teacher
from ddpm_hf.training.distributed import MainProcess, say, start_processes
from ddpm_hf.training.facts import commit_of_code, facts, first_lines, unused_settings
from ddpm_hf.training.init_from import init_from
from ddpm_hf.training.monitors import Monitors
from ddpm_hf.training.optimizers import build_optimizer
from ddpm_hf.training.pushing import Pushes, problem_with
from ddpm_hf.training.resuming import (
    agree_on_checkpoint,
    compare_runs,
    counted_images,
    known_fingerprints,
    refuse_changes,
)
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.step import EXPLODED, TrainStep
from ddpm_hf.training.tracking import Trackers, trackers_for
from ddpm_hf.training.words import words_of_run


class Trainer:
    """One run: ``Trainer(config).train()`` trains, or resumes, and exports.

    Args:
        config: the run's settings.
        stop: notes SIGTERM and SIGINT; None is one that never asks for a stop.
        settings_from: where the settings come from, in words, for the model card.

    Raises:
        UserError: for settings that do not fit the data, the processes or the run found in ``output_dir``.
    """

    def __init__(self, config: TrainConfig, stop: StopSignal | None = None, settings_from: str | None = None):
        self.config, self.stop, self.settings_from = config, stop or StopSignal(), settings_from
        self.run = RunFolder(config.output_dir)
        self.folder = self.run.path
        _refuse_occupied(self.run)
        names = trackers_for(config.report_to)
        self.accelerator = accelerator = start_processes(config, self.run, names)
        self.on_main = MainProcess(accelerator, self.run)
        self.trackers = Trackers(accelerator, self.folder, names)
        rank, ranks = accelerator.process_index, accelerator.num_processes
        if config.streaming:
            options = {"shuffle_buffer_size": config.shuffle_buffer_size, "rank": rank, "num_processes": ranks}
            self.data, self.validation_data = open_stream(config.sources[0], **options, **config.data_settings)
            self.batches = StreamBatches(self.data, config.train_batch_size // ranks)
        else:
            self.data, self.validation_data = open_data(config.sources, **config.data_settings)
            self.batches = ImageBatches(self.data, config.seed, config.train_batch_size, rank, ranks)
        self.scheduler = build_scheduler(config)
        self.words = words_of_run(config, self.data, self.validation_data, accelerator.device)

        torch.manual_seed(mixed_seed(config.seed))
        unet, self.origin = build_unet(config, self.data, self.words and self.words.encoder.width), None
        start = config.distill_from or config.init_from
        if start and not checkpoints_of(self.folder):
            names = self.data.label_names if config.class_conditional else None
            self.origin = init_from(unet, start, names, config.prediction_type)
        unet = unet.to(accelerator.device, memory_format=torch.channels_last)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        model, optimizer = accelerator.prepare(unet, build_optimizer(config, unet, accelerator.mixed_precision))
        averages = build_averages(config, unet)
        fingerprint = self.data.fingerprint + (f" {self.words.fingerprint}" if self.words else "")
        self.state = TrainState(
            unet, optimizer, averages, accelerator.scaler, num_processes=ranks, fingerprint=fingerprint
        )
        null_label, teacher = self.data.num_classes if config.class_conditional else None, None
        if config.distill_from:
            teacher = load_teacher(config.distill_from, config.distill_steps, unet, self.scheduler, accelerator.device)
        parts = (self.scheduler, self.batches, null_label, self.words and self.words.train, teacher)
        self.step = TrainStep(config, accelerator, model, self.state, *parts)
        self.monitors = Monitors(self)
        self._saved_step: int | None = None
        self._pushes: Pushes | None = None
        self._started = time.perf_counter()

    # ---- the loop

    def train(self) -> Path | None:
        """Train to the end and return the folder of the exported pipeline, or None if asked to stop before.

        Raises:
            UserError: if the loss explodes, the disk is full, or the run cannot be resumed.
        """
        self.stop.begin()
        try:
            self.stop.check()
            self.start()
            self.loop()
            return self._finish()
        except StopRequested:
            self._pause()
            return None
        finally:
            if self._pushes is not None:
                self._pushes.end()
            self.on_main.leave()

    def loop(self):
        """Train until the last step: once in a while save, measure, sample and push, then take a step."""
        config, state, main = self.config, self.state, self.accelerator.is_main_process
        with tqdm(initial=state.step, total=self.total_steps, unit="step", disable=not main) as bar:
            while True:
                if self.is_due(config.checkpointing_steps):
                    self._checkpoint()
                if self.is_due(*self.monitors.intervals):
                    self.monitors.log(bar)
                if self.is_due(config.sample_steps):
                    self.monitors.sample()
                self._push()
                if self.is_last:
                    break
                self.stop.check()
                self.train_step()
                bar.update()
        if not self._is_sound():
            self._give_up(math.nan)

    def train_step(self):
        """One optimizer step and one step of the averages, or, where the loss explodes, none."""
        loss = self.step(self.total_steps)
        if self.state.progress.bad_steps > self.config.max_bad_steps:
            self._give_up(loss)

    def is_due(self, *intervals: int) -> bool:
        """Whether the step is a multiple of one of the intervals, or the last."""
        step = self.state.step
        return step > 0 and (self.is_last or any(step % every == 0 for every in intervals))

    @property
    def is_last(self) -> bool:
        return self.state.step >= self.total_steps

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, from its start to its end."""
        num_images = 0 if self.config.streaming else len(self.data)  # a stream has max_train_steps
        return self.config.total_steps(num_images, self.state.step, self.state.progress.images_seen)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.state.unet.parameters())

    @property
    def encoder(self) -> TextEncoder | None:
        """What reads the prompts of the run's pipeline; None without words."""
        return self.words and self.words.encoder

    def known_fingerprints(self) -> set[str]:
        """What a checkpoint of this run may say of the data."""
        return {self.state.fingerprint} if self.words else known_fingerprints(self.config, self.data)

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

    def start(self):
        """Prepare ``output_dir``, or resume from its newest whole checkpoint."""
        config = self.config
        commit_of_code()  # as it is now; cached
        if config.push_to_hub:  # report now what would otherwise fail at the end of the run
            if config.hub_strategy == "best" and self.monitors.validation is None:
                raise UserError("hub_strategy best needs a validation loss, and there are no images to validate on.")
            if problem := self.on_main(lambda: problem_with(config)):
                raise UserError(problem)
        self.on_main.occupy()
        checkpoint = agree_on_checkpoint(self.folder, self.accelerator)
        if checkpoint is not None:
            self._resume(checkpoint)
        if config.push_to_hub:
            self.on_main(self._begin_pushes)
        self.on_main(self._prepare_folder)
        self.trackers.start(config.model_dump(mode="json"))
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        for line in first_lines(self, resumed=checkpoint is not None):
            say(self.accelerator, line)
        if self.origin:
            say(self.accelerator, self.origin)
        if self.config.torch_compile != "no":
            say(self.accelerator, "torch_compile: the first steps compile the network, which can take minutes.")
        for note in self.data.notes:
            say(self.accelerator, f"note: {note}.")
        if warning := unused_settings(config):
            say(self.accelerator, f"warning: {warning}")

    def _begin_pushes(self):
        self._pushes = Pushes(self.config, tqdm.write)
        self._pushes.begin()

    def _prepare_folder(self):
        """Clear away what an interrupted run left behind, and write the settings."""
        self.run.samples.mkdir(exist_ok=True)
        for leftover in self.run.samples.glob(".step-[0-9]*-*.png"):  # see write_whole
            leftover.unlink()
        set_aside_after(self.folder, self.state.step)
        settings = self.config.model_copy(update={"mixed_precision": self.accelerator.mixed_precision})
        settings.save(self.run.config)
        self.run.forget_after(self.state.step)

    def _resume(self, checkpoint: Path):
        """Go on from ``checkpoint``, if it is of this run."""
        state, ranks = self.state, self.accelerator.num_processes
        if changes := refuse_changes(self.config, self.folder):
            say(self.accelerator, f"resuming with changed settings: the run had {'; '.join(changes)}.")
        saved = state.load(checkpoint)
        counts = self.on_main(lambda: counted_images(saved, self.folder))
        state.progress.images_seen, state.progress.logged_images = counts
        self._saved_step = state.step
        if warning := compare_runs(saved, self.config, self.known_fingerprints(), ranks):
            say(self.accelerator, f"warning: {warning}")
        if state.streams and len(state.streams) == ranks:
            self.batches.restore(state.streams[self.accelerator.process_index])

    # ---- what a run writes

    def _checkpoint(self):
        """Write the state, unless it is there already or the loss is bad just now."""
        bad = self.state.progress.bad_steps and not (self.is_last and self._is_sound())
        if self._saved_step != self.state.step and not bad:
            self.save()

    def save(self):
        """Write a checkpoint of this step. Collective."""
        state, position = self.state, self.batches.state()
        state.streams = None if position is None else gather_object([position])
        self._facts()  # counts the wall time, which the state keeps

        def write():
            pipeline = exported_pipeline(self.config, self.data, state.averaged_unet(), self.encoder)
            state.save(self.folder / "checkpoints" / f"step-{state.step}", pipeline)
            self.run.keep_facts(facts(self))  # for whoever pushes a run that goes on, or was killed
            rotate(self.folder, self.config.checkpoints_total_limit, self.run.best_step())

        self.on_main(write)
        self._saved_step = state.step

    def _facts(self) -> Facts:
        now = time.perf_counter()
        self.state.progress.wall_seconds += now - self._started
        self._started = now
        return facts(self)

    def averaged_pipeline(self):
        """The pipeline of the first average, which samples as the exported model will."""
        return build_pipeline(self.config, self.data, self.state.averaged_unet(), self.encoder)

    def _push(self):
        """Start the push that is due, and report finished pushes. The last push starts at the end of the run."""
        if self._pushes is None:
            return
        self._pushes.poll()
        config, step = self.config, self.state.step
        if self.is_last:
            return
        if config.hub_strategy == "every_save" and self._saved_step == step and self.is_due(config.checkpointing_steps):
            self._pushes.push(step, self._facts(), checkpoint=True)
        elif config.hub_strategy == "best" and self.is_due(config.validation_steps, config.checkpointing_steps):
            best = self.run.best_step()
            if best not in (None, self._pushes.last_step):
                self._pushes.push(best, self._facts(), checkpoint=True)

    # ---- the end

    def _pause(self):
        """Save the state of a run that was asked to stop, if it is worth keeping."""
        state = self.state
        if state.step == 0:
            say(self.accelerator, f"stopped before the first step ({self.stop.reason}); the same command goes on.")
            return
        if self._saved_step != state.step and not state.progress.bad_steps:
            self.save()
        self._report()
        kept = checkpoints_of(self.folder)
        where = f"the state is saved in {kept[-1]}" if kept else "there is no checkpoint yet"
        say(
            self.accelerator,
            f"stopped at step {state.step:,} of {self.total_steps:,} ({self.stop.reason}); {where}: the same command "
            f"goes on from there.",
        )
        self.trackers.finish()
        if self._pushes is not None:
            self._pushes.finish(self.stop)

    def _finish(self) -> Path:
        config, folder, pushes = self.config, self.run.pipeline, self._pushes

        def write():
            pipeline = exported_pipeline(config, self.data, self.state.averaged_unet(), self.encoder)
            export_pipeline(folder, pipeline, weights=weights_name(config.ema_max_decays[0]))
            rotate(self.folder, config.checkpoints_total_limit, self.run.best_step())

        self.on_main(write)
        self._report()
        if pushes is not None:
            best = self.run.best_step() if config.hub_strategy == "best" else None
            pushes.push(best or self.state.step, self._facts(), checkpoint=best is not None, last=True)
        say(
            self.accelerator,
            f"exported {folder}; python -m ddpm_hf sample {quote(str(folder))} --output grid.png shows pictures",
        )
        self.accelerator.wait_for_everyone()
        self.trackers.finish()  # ends the process group: nothing collective after it
        if pushes is not None:
            pushes.finish(self.stop)  # the other processes have gone
        return folder

    def _report(self):
        if self.accelerator.is_main_process:
            try:
                self.run.keep_facts(self._facts())
                write_report(self.folder)
            except Exception as error:  # a run of days does not fail for its last picture
                say(self.accelerator, f"warning: the report could not be written: {one_line(error)}")


def _refuse_occupied(run: RunFolder):
    """Raise a UserError where the run's files would replace others."""
    if run.path.exists() and not run.path.is_dir():
        raise UserError(f"output_dir {run.path} is a file, expected a folder.")
    if taken := RUN.collisions(run.path):
        names = ", ".join(taken[:3]) + (", ..." if len(taken) > 3 else "")
        raise UserError(
            f"{run.path} already has {names}, but no readable config.yaml of a training run; choose another output_dir."
        )
    if not may_replace(run.pipeline, PIPELINE):
        raise UserError(f"{run.pipeline} is in the way of the run's own; choose another output_dir.")
