# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "torch>=2.8",
#     "torchvision>=0.23",
#     "diffusers>=0.35",
#     "accelerate>=1.10",
#     "datasets>=4.0",
#     "huggingface_hub>=1.16",
#     "safetensors>=0.5",
#     "pydantic>=2.10",
#     "numpy>=1.26",
#     "pillow>=11.3",
#     "pyyaml>=6.0",
#     "tqdm>=4.66",
#     "matplotlib>=3.8",
#     "jinja2>=3.1",
#     "torch-fidelity>=0.4",
#     "tenacity>=9.0",
#     "psutil>=6",
# ]
# ///
"""Train a DDPM on your images: ``accelerate launch train.py --config configs/fashion_mnist.yaml [--setting value]``.

The same command again resumes the run, to the bit. The header lets ``uv run train.py`` find what it needs.
"""

import os
import sys


def main(argv: list[str]) -> int:
    """Train as ``argv`` says; returns 0 when done or asked to stop, 2 after a one-line error for a user's mistake."""
    from ddpm_hf.errors import echo, run_command
    from ddpm_hf.stopping import StopRequested, StopSignal

    def run():
        from ddpm_hf.config import load_config, settings_from

        config = load_config(argv)
        from ddpm_hf.training import Trainer, print_plan  # slow to import, not needed for --help or a wrong setting

        trainer = Trainer(config, stop, settings_from(argv))
        if config.dry_run:
            print_plan(trainer)
        else:
            trainer.train()

    with StopSignal() as stop:
        try:
            return run_command(run)
        except StopRequested:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                echo(f"stopped before the first step ({stop.reason}); the same command goes on.")
            return 0
        except KeyboardInterrupt:
            echo("ended at once; the newest checkpoint is whole, and the same command goes on from it.")
            return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
