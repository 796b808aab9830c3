"""The weights that a run keeps besides those it exports: its other averages, and the ones it trains."""

from pathlib import Path

from safetensors.torch import load_file

from ddpm_hf.checkpoints import newest_whole, read_state
from ddpm_hf.errors import UserError, one_line
from ddpm_hf.hub import load_pipeline, weights_name
from ddpm_hf.pipeline import MyDDPMPipeline
from ddpm_hf.training.state import average_file

RAW = "raw"


def load_weights_of(run: str | Path, weights: str) -> MyDDPMPipeline:
    """The pipeline of a run's newest whole checkpoint, with the weights that were asked for.

    Args:
        run: output_dir of a training run.
        weights: "raw" for those that are trained, or the decay of one of the run's averages, such as "0.999".

    Raises:
        UserError: if there is no whole checkpoint, or no such average.
    """
    checkpoint, complaints = newest_whole(Path(run))
    if checkpoint is None:
        raise UserError(complaints[0] + "." if complaints else f"{run} is not the output_dir of a run: no checkpoints.")
    try:
        saved = read_state(checkpoint)
        name = weights if weights == RAW else repr(float(weights))
        file = checkpoint / "unet.safetensors" if name == RAW else average_file(checkpoint, name, saved)
    except ValueError as error:
        raise UserError(f"{checkpoint} has no weights {weights!r}: {one_line(error)}, besides {RAW!r}.") from None
    pipeline = load_pipeline(checkpoint / "pipeline")
    pipeline.unet.load_state_dict(load_file(file))
    pipeline.weights = weights_name(name)
    return pipeline
