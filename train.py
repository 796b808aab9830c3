"""Train a DDPM on your images: ``accelerate launch train.py --config configs/fashion_mnist.yaml [--setting value]``.

The same command again resumes the run, to the bit.
"""

import sys


def main(argv: list[str]) -> int:
    """Train as ``argv`` says; 0 when done, 2 for a mistake of the user's, told in one line."""
    from ddpm_hf.errors import run_command

    def run():
        from ddpm_hf.config import load_config

        config = load_config(argv)
        from ddpm_hf.training import Trainer  # slow to import, not needed for --help or a wrong setting

        Trainer(config).train()

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
