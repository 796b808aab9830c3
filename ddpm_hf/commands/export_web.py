"""``python -m ddpm_hf export-web``: a static page that runs a model in the visitor's own browser."""

import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ddpm_hf.errors import UserError, echo, one_line
from ddpm_hf.ownership import WEB, may_replace, replace_folder

PAGE = Path(__file__).resolve().parent.parent / "web"
PACKAGE = "onnxruntime-web"
# of the package: the one for WebGPU, the one for WebAssembly alone, and its licence
RUNTIME = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
RUNTIME += ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
LARGEST_ERROR = 1e-3  # of a prediction of the ONNX network


def add_parser(commands):
    parser = commands.add_parser("export-web", help="write a static page that runs a model in the browser")
    parser.add_argument("model", help="output_dir of a training run, folder of a pipeline, or Hub id")
    parser.add_argument("folder", help="folder of the page, for a static Space or any web server")
    parser.add_argument("--title", help="heading of the page (default the model's name)")
    parser.add_argument(
        "--runtime", help=f"folder with the dist files of {PACKAGE} (default: fetched with npm from its registry)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.set_defaults(run=run)


def run(arguments):
    folder = Path(arguments.folder).resolve()
    if not may_replace(folder, WEB):
        raise UserError(f"{folder} exists and is not a page of this command; choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as parent:
        new = Path(parent) / "new"
        error = write_page(new, arguments.model, arguments.revision, arguments.title, arguments.runtime)
        replace_folder(folder, new, WEB)
    echo(f"wrote {folder}; largest error of its network: {error:.1e}; python -m http.server -d {folder} shows it")


def write_page(folder: Path, model: str, revision: str | None, title: str | None, runtime: str | None) -> float:
    """Write the page of a model into a new folder; returns the largest error of its network (``write_onnx``).

    Raises:
        UserError: if the model cannot be loaded or shown, or something that the page needs is missing.
    """
    for package in ("onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"a page in the browser needs the package {package}: pip install onnxscript onnxruntime")
    from ddpm_hf.hub import load_pipeline, public_name

    pipeline = load_pipeline(model, revision=revision)
    settings = page_settings(pipeline, title or public_name(model))
    (folder / "runtime").mkdir(parents=True)
    _copy_runtime(Path(runtime) if runtime else None, folder / "runtime")
    for name in ("index.html", "app.js", "sampler.js", "style.css"):
        shutil.copyfile(PAGE / name, folder / name)
    error = write_onnx(pipeline.unet, folder / "model.onnx")
    (folder / WEB.index).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return error


def page_settings(pipeline, title: str) -> dict:
    """What the page has to know of a model: model.json.

    Raises:
        UserError: for a model that the page cannot run.
    """
    from ddpm_hf.sampling import class_names, own_sampling

    unet, config = pipeline.unet, pipeline.config
    if type(unet).__name__ != "MyUNet":
        raise UserError(f"export-web: its network is a {type(unet).__name__}, expected a MyUNet.")
    if unet.config.get("cross_attention_dim"):
        raise UserError("export-web: the page has no prompts; models with words need python app.py.")
    if not isinstance(unet.config.sample_size, int):
        raise UserError("export-web: the network's images are not square.")
    own = own_sampling(pipeline)
    guided = pipeline.num_classes is not None and own.guidance_scale != 1
    return {
        "made_by": "ddpm_hf export-web",
        "title": title,
        "channels": unet.config.in_channels,
        "sample_size": unet.config.sample_size,
        "height": config.output_height or unet.config.sample_size,
        "width": config.output_width or unet.config.sample_size,
        "resize": bool(config.get("output_resize")),
        "classes": class_names(pipeline),
        "null_label": pipeline.num_classes,
        "alphas_cumprod": pipeline.scheduler.alphas_cumprod.double().tolist(),
        "prediction_type": pipeline.scheduler.config.prediction_type,
        "sampler": own.sampler,
        "steps": own.steps,
        "guided": guided,
        "guidance_scale": own.guidance_scale,
        "guidance_interval": own.guidance_interval if guided else None,
    }


def write_onnx(unet, path: Path) -> float:
    """Write a MyUNet as ONNX, with a dynamic batch; returns its largest error against torch on random images.

    Inputs: sample (B, C, S, S), timestep float32 (B,), and class_labels int64 (B,) of a network with classes.

    Raises:
        UserError: if the error is above LARGEST_ERROR.
    """
    import onnxruntime
    import torch

    names = ["sample", "timestep"] + ["class_labels"] * (unet.config.num_class_embeds is not None)

    def inputs(count: int):
        generator = torch.Generator().manual_seed(count)
        shape = (count, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        timesteps = torch.linspace(0, unet.config.num_train_timesteps - 1, count)
        labels = torch.arange(count) % ((unet.config.num_class_embeds or 0) + 1)
        return (torch.randn(shape, generator=generator), timesteps, labels)[: len(names)]

    dynamic = ({0: torch.export.Dim("batch")},) * len(names)
    unet = unet.float().cpu().eval().to(memory_format=torch.contiguous_format)
    try:
        with torch.no_grad():
            torch.onnx.export(
                unet,
                inputs(2),
                path,
                dynamic_shapes=dynamic,
                input_names=names,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise UserError(f"export-web: the network cannot be written as ONNX: {one_line(error)}") from error
    session, worst = onnxruntime.InferenceSession(path), 0.0
    for count in (1, 3):
        given = inputs(count)
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, given)})
        with torch.no_grad():
            worst = max(worst, (torch.from_numpy(found) - unet(*given).sample).abs().max().item())
    if not worst <= LARGEST_ERROR:
        raise UserError(f"export-web: the ONNX network is wrong by {worst:.2g}, more than {LARGEST_ERROR:g}.")
    return worst


def _copy_runtime(source: Path | None, target: Path):
    """The files of onnxruntime-web, from a folder or, with npm, from the registry."""
    if source is None:
        if shutil.which("npm") is None:
            raise UserError(f"export-web fetches {PACKAGE} with npm, which is not installed; or name --runtime FOLDER.")
        command = ["npm", "pack", "--silent", PACKAGE]
        done = subprocess.run(command, cwd=target, capture_output=True, text=True, encoding="utf-8")
        archive = next(target.glob("*.tgz"), None)
        if done.returncode or archive is None:
            raise UserError(f"{' '.join(command)} failed: {one_line(done.stderr or 'no file')}")
        shutil.unpack_archive(archive, target / "fetched", "gztar", **_safely())
        archive.unlink()
        source = target / "fetched" / "package" / "dist"
    if missing := [name for name in RUNTIME if not (source / name).is_file()]:
        raise UserError(f"--runtime {source} has no {missing[0]}; it should be the folder dist of {PACKAGE}.")
    for name in RUNTIME:
        shutil.copyfile(source / name, target / name)
    shutil.rmtree(target / "fetched", ignore_errors=True)
    version = re.search(r"v(\d+\.\d+\.\d+)", (target / RUNTIME[0]).read_text(encoding="utf-8")[:500])
    (target / "README.txt").write_text(f"{PACKAGE} {version[1] if version else ''}, MIT licence\n", encoding="utf-8")


def _safely() -> dict:
    """The argument that keeps an archive's files inside the folder, where this Python has it."""
    import tarfile

    return {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
