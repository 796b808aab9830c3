"""Start a run from the weights of a trained model (``init_from``)."""

from collections.abc import Sequence

import torch

from ddpm_hf.errors import UserError
from ddpm_hf.hub import load_pipeline, public_name

SHIPPED = "shipped"
MOST_NAMES = 4  # in a line
CLASSES = "class_embed.weight"
# weights whose first or second axis is the channels of the images, times the pixels of a patch
OF_OUTPUT = {"input_conv.norm_in.weight", "input_conv.norm_in.bias"}
OF_OUTPUT |= {f"{layer}.{part}" for layer in ("out_conv", "conv_out") for part in ("weight", "bias")}
OF_INPUT = {"input_conv.conv1.weight", "input_conv.skip.weight", "conv_in.weight"}


def init_from(unet: torch.nn.Module, model: str, label_names: Sequence[str] | None, prediction_type: str) -> str:
    """Copy the weights of ``model`` into ``unet`` wherever their shapes agree.

    Gray and RGB fit each other: the weights of the channels are averaged and repeated, so that a gray image gives the
    same activations. Of the classes, those with the same names are copied, and the embedding of no class.

    Args:
        unet: network to start; the weights that do not fit stay as they are.
        model: folder of a pipeline or a run, Hub id, or "shipped".
        label_names: of the run's classes; None without classes.
        prediction_type: what the network is going to predict.

    Returns:
        One line: where the weights are from, and which ones stayed random.

    Raises:
        UserError: if the model cannot be loaded, or no weight fits.
    """
    pipeline = load_pipeline(None if model == SHIPPED else model)
    source, others = pipeline.unet.state_dict(), []
    channels = (pipeline.unet.config.in_channels, unet.config.in_channels)
    id2label = pipeline.config.get("id2label") or {}
    names_before = [id2label.get(str(i)) for i in range(pipeline.num_classes or 0)]
    learned = {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for name, weight in learned.items():
            found = source.get(name)
            if found is not None and found.shape != weight.shape and name in OF_INPUT | OF_OUTPUT:
                found = _with_channels(found, *channels, of_input=name in OF_INPUT)
            if name == CLASSES and found is not None:
                fitting = _copy_classes(weight, found, names_before, label_names)
                if fitting < len(weight):
                    others.append(f"{len(weight) - fitting} of {len(weight) - 1} classes")
            elif found is None or found.shape != weight.shape:
                others.append(name)
            else:
                weight.copy_(found)
    if len(others) == len(learned):
        raise UserError(f"init_from {model}: none of its weights has a shape of this run's network.")
    line = f"started from {public_name(None if model == SHIPPED else model)}"
    if others:
        more = f" and {len(others) - MOST_NAMES} more" if len(others) > MOST_NAMES else ""
        line += f", but these weights are new: {', '.join(others[:MOST_NAMES])}{more}"
    if (before := pipeline.scheduler.config.prediction_type) != prediction_type:
        line += f"; it predicts {before}, and this run has to learn {prediction_type}"
    return f"{line}."


def _with_channels(weight: torch.Tensor, before: int, after: int, *, of_input: bool) -> torch.Tensor:
    """``weight`` for images of ``after`` channels: (C * p^2, ...), or (out, C * p^2, ...) of the input."""
    axis = 1 if of_input else 0
    weight = weight.unflatten(axis, (before, -1)).mean(axis, keepdim=True).repeat_interleave(after, axis)
    return weight.flatten(axis, axis + 1) * (before / after if of_input else 1)


def _copy_classes(weight: torch.Tensor, found: torch.Tensor, before: list, names: Sequence[str] | None) -> int:
    """Copy the rows of classes with the same name, and the last one, of no class; returns how many."""
    if found.shape[1] != weight.shape[1]:
        return 0
    if list(names or ()) == before or (found.shape == weight.shape and not any(before)):
        weight.copy_(found)
        return len(weight)
    rows = {name: row for row, name in enumerate(before) if name is not None}
    pairs = [(row, rows[name]) for row, name in enumerate(names or ()) if name in rows] + [(-1, -1)]
    for row, row_before in pairs:
        weight[row].copy_(found[row_before])
    return len(pairs)
