"""The command line: ``python -m ddpm_hf COMMAND``, or ``ddpm-hf COMMAND`` where it is installed; --help lists them."""

import sys

from ddpm_hf.commands import (
    deploy_space,
    distill,
    evaluate,
    export,
    export_web,
    noise,
    push,
    report,
    sample,
    train_features,
)
from ddpm_hf.errors import Parser, echo, run_command

COMMANDS = (sample, evaluate, train_features, noise, report, export, export_web, distill, push, deploy_space)


def main(argv: list[str] | None = None) -> int:
    """Run a command of ``argv``, the process's arguments if None; 0 when done, 2 after a one-line error."""

    def run():
        parser = Parser(prog="python -m ddpm_hf", description="Use a trained model from the command line.")
        commands = parser.add_subparsers(metavar="COMMAND", required=True)
        for command in COMMANDS:
            command.add_parser(commands)
        arguments = parser.parse_args(argv)
        arguments.run(arguments)

    try:
        return run_command(run)
    except KeyboardInterrupt:
        echo("interrupted; the same command does it again.", error=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
