"""``python -m ddpm_hf report``: the losses of a run, drawn, and its page."""

from pathlib import Path

from ddpm_hf.errors import echo


def add_parser(commands):
    parser = commands.add_parser("report", help="draw the losses of a run, and write its page report.html")
    parser.add_argument("run_dir", help="output_dir of a training run, which may still be going")
    parser.set_defaults(run=run)


def run(arguments):
    from ddpm_hf.report import write_report

    echo(f"wrote {write_report(Path(arguments.run_dir))}")
