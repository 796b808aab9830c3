"""What is measured while a run trains: lines of metrics, validation losses, scores and grids of samples."""

from tqdm.auto import tqdm

from ddpm_hf.files import write_whole
from ddpm_hf.training.build import rate_factor
from ddpm_hf.training.pictures import sample_grid
from ddpm_hf.training.validation import Validation


class Monitors:
    """The measurements of ``trainer``'s run. All methods are collective."""

    def __init__(self, trainer):
        self.trainer, config, accelerator = trainer, trainer.config, trainer.accelerator
        held_out = trainer.validation_data
        words = trainer.words and trainer.words.validation
        self.validation = held_out and Validation(held_out, trainer.scheduler, config.seed, accelerator, words)
        self.score = None
        if config.score_features:
            from ddpm_hf.training.score import FrechetScore  # needs packages that other runs do without

            images = held_out or trainer.data
            self.score = FrechetScore(config.score_features, images, config.score_images, accelerator)
        # steps between the lines that there are
        self.intervals = [config.logging_steps]
        self.intervals += [config.validation_steps] * bool(self.validation) + [config.score_steps] * bool(self.score)

    def log(self, bar: tqdm):
        """Write the line of this step, if it is not there yet, with a validation loss and a score where due."""
        trainer, config = self.trainer, self.trainer.config
        state, progress = trainer.state, trainer.state.progress
        if trainer.on_main(lambda: trainer.run.has_line(state.step)):
            progress.start_line()
            return
        line = self._line()
        if self.validation and trainer.is_due(config.validation_steps):
            loss, means = self.validation(state.averaged_unet(), config.class_conditional, trainer.stop.check)
            line |= {"validation_loss": loss, "validation_loss_by_timestep": means}
        if self.score and trainer.is_due(config.score_steps):
            prompts = trainer.words and trainer.words.captions
            line["frechet_distance"] = self.score(trainer.averaged_pipeline(), trainer.stop.check, prompts)
        trainer.on_main(lambda: trainer.run.append(line))
        trainer.trackers.log(line)
        progress.start_line()
        shown = {name: line[name] for name in ("loss", "validation_loss") if line.get(name) is not None}
        epoch = {} if line["epoch"] is None else {"epoch": f"{line['epoch']:.2f}"}  # a stream has no count
        bar.set_postfix(
            {name.removesuffix("_loss"): f"{value:.4f}" for name, value in shown.items()} | epoch,
            images_s=f"{line['images_per_second']:.0f}",
        )

    def _line(self) -> dict:
        """The line of metrics.jsonl: means over the steps since the last one."""
        trainer, config, state = self.trainer, self.trainer.config, self.trainer.state
        progress = state.progress
        count = progress.good_steps
        return {
            "step": state.step,
            "images_seen": progress.images_seen,
            "epoch": None if config.streaming else round(progress.images_seen / len(trainer.data), 4),
            "loss": progress.loss_sum / count if count else None,
            "grad_norm": progress.norm_sum / count if count else None,
            "lr": config.learning_rate * rate_factor(config, state.step - 1, trainer.total_steps),
            "images_per_second": round(progress.logged_images / max(progress.seconds, 1e-9), 2),
            "ema_decay": state.ema_decay,
            "skipped_steps": progress.skipped_steps,
        }

    def sample(self):
        """Write the grid of this step, if it is not there yet."""
        trainer = self.trainer
        path = trainer.run.grid(trainer.state.step)
        if trainer.on_main(path.exists):
            return
        check = trainer.stop.check
        pipeline, count = trainer.averaged_pipeline(), trainer.config.num_samples
        prompts = trainer.words and trainer.words.prompts
        grid = sample_grid(pipeline, count, trainer.accelerator, check, prompts)
        trainer.on_main(lambda: write_whole(path, grid.save))
        if trainer.accelerator.is_main_process:
            trainer.trackers.log_grid(grid, trainer.state.step)
