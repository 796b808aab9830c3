"""``python -m ddpm_hf deploy-space``: a Space that shows a model, made or brought up to date."""

import argparse
import tempfile
from pathlib import Path

from ddpm_hf.errors import UserError, echo
from ddpm_hf.hub.retries import USUAL


def add_parser(commands):
    parser = commands.add_parser(
        "deploy-space",
        help="make a Space that shows a model",
        description="Make a Space that shows a model, or bring it up to date: the app, the package and their settings.",
    )
    parser.add_argument("--space-id", required=True, help="name/space")
    parser.add_argument("--model", help="Hub id, or a folder, which is uploaded with it; default: the embedded model")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id; default: always the newest")
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="make a new Space private, and refuse a public one (default: of a run's folder, its hub_private_repo)",
    )
    parser.add_argument("--title", help="of the Space; default: the model's name")
    parser.add_argument("--hardware", help="that a new Space asks for, such as t4-small; default: the free one")
    parser.add_argument("--zero-gpu", action="store_true", help="hardware, requirements and Python of ZeroGPU")
    parser.add_argument(
        "--static", action="store_true", help="a page that runs the model in the visitor's browser, as of export-web"
    )
    parser.add_argument("--runtime", help="with --static: folder with the dist files of onnxruntime-web")
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="environment variable that becomes a secret of the Space, such as HF_TOKEN for a private model",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be uploaded, and upload nothing")
    parser.set_defaults(run=run)


def run(arguments):
    from ddpm_hf.hub.space import prepared_space
    from ddpm_hf.hub.upload import send

    if arguments.static:
        _run_static(arguments)
        return
    if arguments.runtime:
        raise UserError("--runtime is of --static, the page that runs in the browser.")
    with prepared_space(
        arguments.space_id,
        arguments.model,
        revision=arguments.revision,
        private=arguments.private,
        title=arguments.title,
        hardware=arguments.hardware,
        zero_gpu=arguments.zero_gpu,
        secrets=arguments.secret,
        limits=USUAL,
    ) as (upload, advice):
        if arguments.dry_run:
            _show(upload)
        else:
            answer = send(upload)
            echo(f"{'deployed' if answer['changed'] else 'unchanged:'} {answer['url']}")
    for line in advice:
        echo(line)


def _run_static(arguments):
    from ddpm_hf.commands.export_web import write_page
    from ddpm_hf.hub import EMBEDDED_MODEL, public_name
    from ddpm_hf.hub.loading import is_hub_id
    from ddpm_hf.hub.space import static_space
    from ddpm_hf.hub.upload import send

    for name in ("hardware", "zero_gpu", "secret"):
        if getattr(arguments, name):
            raise UserError(f"--{name.replace('_', '-')} is of a Space that computes; a static one has no machine.")
    model = arguments.model or str(EMBEDDED_MODEL)
    title = arguments.title or public_name(model)
    with tempfile.TemporaryDirectory(prefix="ddpm-hf-space-") as temporary:
        write_page(Path(temporary) / "page", model, arguments.revision, title, arguments.runtime)
        shown = model if is_hub_id(model) else None
        upload = static_space(arguments.space_id, Path(temporary) / "page", title, shown, arguments.private)
        if arguments.dry_run:
            _show(upload)
        else:
            answer = send(upload)
            echo(f"{'deployed' if answer['changed'] else 'unchanged:'} {answer['url']}")


def _show(upload):
    sizes = {name: Path(path).stat().st_size for name, path in upload.files.items()}
    echo(f"Space {upload.repo_id} would hold {len(sizes)} files of {sum(sizes.values()):,} bytes:")
    echo()
    for name, size in sizes.items():
        echo(f"{size:>12,}  {name}")
    for name in ("README.md", "requirements.txt"):
        if name not in upload.files:
            continue
        text = Path(upload.files[name]).read_text(encoding="utf-8").rstrip()
        for line in ("", f"{name}:", "", *text.splitlines()):
            echo(line)
    variables = [f"{key}={value}" for key, value in upload.variables.items() if value is not None]
    echo()
    echo(f"variables: {', '.join(variables) or 'none'}")
    echo(f"secrets: {', '.join(upload.secrets) or 'none'}")
    echo("nothing was uploaded.")
