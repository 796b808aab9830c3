"""Feature extractors by name or path: what turns images into the numbers that scores compare."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from ddpm_hf.errors import UserError, one_line
from ddpm_hf.evaluation.classifier import ImageClassifier
from ddpm_hf.reading import read_json

EMBEDDED_FEATURES = Path(__file__).resolve().parents[2] / "pretrained" / "fashion_mnist_features"
AUTO, EMBEDDED, INCEPTION = "auto", "fashion-mnist", "inception"
# Networks always see so many images at once, padded where there are fewer: matrix kernels round differently for
# other shapes, and a score would depend on how the images were split.
BATCH = 64
LARGEST = 1e8  # the kernel distance takes products of features to the third power, in float64


class Features(NamedTuple):
    """features: float32 (N, D). logits: float32 (N, classes), or None where the network has none."""

    features: torch.Tensor
    logits: torch.Tensor | None


class FeatureExtractor:
    """A network from images to features, with what a report has to say of it.

    Args:
        name: as the user gave it.
        network: from uint8 (B, C, H, W) to features (B, D), or to (features, logits).
        rule: how images are brought to what it takes, in words.
        classes: of its logits, their names or, where these are not known, their number; None: of no data set.
    """

    def __init__(
        self, name: str, network: Callable, rule: str, device: torch.device, classes: list[str] | int | None = None
    ):
        self.name, self.network, self.rule, self.device = Path(name).name, network, rule, device
        self.classes = classes

    def knows(self, names: list[str] | None, count: int | None) -> bool:
        """Whether its logits are the classes of these names, or where one side has none, of this number."""
        if self.classes is None or not count:
            return False
        if isinstance(self.classes, int) or names is None:
            return count == (self.classes if isinstance(self.classes, int) else len(self.classes))
        return [name.lower() for name in names] == [name.lower() for name in self.classes]

    def num_features(self, shape: tuple[int, int, int]) -> int:
        """D, for images of ``shape`` (C, H, W); a UserError if it cannot take them."""
        return self(torch.zeros(1, *shape, dtype=torch.uint8)).features.shape[1]

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> Features:
        """Features of images uint8 (N, C, H, W), image by image the same in any order and company.

        Raises:
            UserError: if the network cannot take them, or gives something else than numbers.
        """
        parts = [self._batch(part) for part in images.split(BATCH)]
        features = torch.cat([part.features for part in parts])
        logits = None if parts[0].logits is None else torch.cat([part.logits for part in parts])
        for values in (features,) if logits is None else (features, logits):
            if not values.abs().max() <= LARGEST:  # NaN is not
                raise UserError(f"features {self.name} gives values that are not finite, or beyond {LARGEST:.0e}.")
        return Features(features, logits)

    def _batch(self, images: torch.Tensor) -> Features:
        count = len(images)
        if count < BATCH:
            images = torch.cat((images, images[-1:].expand(BATCH - count, -1, -1, -1)))
        try:
            out = self.network(images.to(self.device))
        except Exception as error:  # torch raises RuntimeError for nearly all of it
            shape = "x".join(map(str, images.shape[1:]))
            raise UserError(f"features {self.name} cannot take images of {shape}: {_reason(error)}") from error
        features, logits = out if isinstance(out, tuple | list) and len(out) == 2 else (out, None)
        for tensor in (features,) if logits is None else (features, logits):
            if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2 or len(tensor) != BATCH:
                what = f"shape {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise UserError(
                    f"features {self.name} returns {what} for {BATCH} images; expected features ({BATCH}, D), "
                    f"or features and logits ({BATCH}, classes)."
                )
        return Features(features[:count].float().cpu(), None if logits is None else logits[:count].float().cpu())


def load_features(
    name: str | None,
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
    *,
    weights: str | None = None,
    label_names: list[str] | None = None,
) -> FeatureExtractor:
    """The extractor called ``name``, for images of ``shape`` (C, H, W).

    Args:
        name: "fashion-mnist", the classifier that ships with the repository; "inception", the standard network of
            FID, whose weights are fetched; a folder written by ``train-features`` or by ``save_pretrained`` of one of
            diffusers' autoencoders; a TorchScript file, or a .pt2 of torch.export, which takes float32 (B, C, H, W) in
            [0, 1] and gives features (B, D) or (features, logits). "auto" or None is the classifier for gray 28x28
            images, unless ``label_names`` are others, and Inception for the rest.
        weights: file of Inception's weights, where they cannot be fetched.
        label_names: classes of the images, where they are known.

    Raises:
        UserError: if there is no such extractor, or it is not for such images.
    """
    device = torch.device(device)
    if name in (None, AUTO):
        name = EMBEDDED if shape == (1, 28, 28) and _are_garments(label_names) else INCEPTION
    if name == INCEPTION:
        return _inception(weights, device)
    path = EMBEDDED_FEATURES if name == EMBEDDED else Path(name)
    if path.is_dir():
        return _from_folder(name, path, shape, device)
    if not path.is_file():
        raise UserError(
            f"features {name!r} not found; expected {EMBEDDED}, {INCEPTION}, a folder of train-features, or "
            f"a TorchScript or .pt2 file."
        )
    return _from_file(name, path, shape, device)


def _are_garments(label_names: list[str] | None) -> bool:
    """Whether images of these classes, or of unknown ones, are for the embedded classifier."""
    if not EMBEDDED_FEATURES.is_dir():
        return False
    names = read_json(EMBEDDED_FEATURES / "config.json")["id2label"].values()
    return label_names is None or [name.lower() for name in label_names] == [name.lower() for name in names]


def _unit(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


def _as_rgb(images: torch.Tensor) -> torch.Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _reason(error: Exception) -> str:
    """What an error says: that of a TorchScript network at its end, below the network's own traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines and "TorchScript" in lines[0] else one_line(error)


# ---- networks


def _inception(weights: str | None, device: torch.device) -> FeatureExtractor:
    """torch-fidelity's port of the network that Heusel et al. 2017 used, to the weight."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    if weights is not None and not Path(weights).is_file():
        raise UserError(f"--inception-weights {weights} does not exist.")
    try:
        network = FeatureExtractorInceptionV3(INCEPTION, ["2048", "logits_unbiased"], weights, verbose=False)
    except Exception as error:  # the network's, the file's, torch's
        raise UserError(
            f"Inception's weights cannot be loaded ({one_line(error)}); give a file by --inception-weights, or other "
            f"features by --features."
        ) from error
    rule = "gray repeated to RGB, scaled to 299x299 as TensorFlow 1 does, pixels to [-1, 1)"
    return FeatureExtractor(INCEPTION, lambda images: network.to(device)(_as_rgb(images)), rule, device)


def _from_folder(name: str, path: Path, shape, device: torch.device) -> FeatureExtractor:
    """An ``ImageClassifier``, or one of diffusers' autoencoders, whose features are the means of its latents."""
    import diffusers

    try:
        kind = read_json(path / "config.json")["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"features {name} has no config.json of diffusers that names its class.") from None
    own = kind == ImageClassifier.__name__
    network_class = ImageClassifier if own else getattr(diffusers, kind, None) if "Autoencoder" in kind else None
    if network_class is None:
        raise UserError(f"features {name} is a {kind}; expected an ImageClassifier or an autoencoder.")
    try:
        network = network_class.from_pretrained(path, use_safetensors=True).float().eval().to(device)
    except Exception as error:
        raise UserError(f"features {name} cannot be loaded: {one_line(error)}") from error
    if own:
        return _classifier(name, network, shape, device)
    rgb = network.config.in_channels == 3

    def encode(images: torch.Tensor) -> torch.Tensor:
        latents = network.encode(_unit(_as_rgb(images) if rgb else images) * 2 - 1)
        return (latents.latent_dist.mean if hasattr(latents, "latent_dist") else latents.latents).flatten(1)

    return FeatureExtractor(name, encode, "gray repeated to RGB, pixels to [-1, 1]; means of the latents", device)


def _classifier(name: str, network: ImageClassifier, shape, device: torch.device) -> FeatureExtractor:
    wanted = (network.config.in_channels, *network.config.sample_size)
    if shape != wanted:
        raise UserError(
            f"features {name} are for images of {'x'.join(map(str, wanted))} (channels, height, width), these are "
            f"{'x'.join(map(str, shape))}; choose others with --features, or train some on your images: python -m "
            f"ddpm_hf train-features with the --sample-size and the --resize of the model."
        )
    network.to(memory_format=torch.channels_last)
    rule = f"as they are, {wanted[1]}x{wanted[2]}, pixels to [-1, 1]"
    names = network.config.id2label
    classes = network.config.num_classes if names is None else [names[str(i)] for i in range(len(names))]
    return FeatureExtractor(name, lambda images: network(_unit(images)), rule, device, classes)


def _from_file(name: str, path: Path, shape, device: torch.device) -> FeatureExtractor:
    try:
        if path.suffix == ".pt2":
            network = torch.export.load(path).module().to(device)
        else:
            network = torch.jit.load(path, map_location=device).eval()
    except Exception as error:
        raise UserError(f"features {name} cannot be loaded: {one_line(error)}") from error
    example = torch.zeros(BATCH, *shape, dtype=torch.uint8)
    plain = FeatureExtractor(name, lambda images: network(_unit(images)), "as they are, pixels to [0, 1]", device)
    try:
        plain(example)
    except UserError:
        if shape[0] != 1:
            raise
        rule = "gray repeated to RGB, pixels to [0, 1]"
        plain = FeatureExtractor(name, lambda images: network(_unit(_as_rgb(images))), rule, device)
        plain(example)
    return plain
