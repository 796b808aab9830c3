"""Every kind of extractor, real and small, and one line for each that cannot be used."""

import diffusers
import pytest
import torch
from helpers import ROOT
from torch import nn

from ddpm_hf.data import load_images
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.classifier import ImageClassifier, accuracy, save_classifier, train_classifier
from ddpm_hf.evaluation.features import EMBEDDED_FEATURES, load_features
from ddpm_hf.image_sets import image_set

GRAY = (1, 28, 28)


@pytest.fixture(scope="module")
def data():
    return load_images(str(ROOT / "data" / "fashion_mnist_tiny.parquet"))


@pytest.fixture(scope="module")
def images(data) -> torch.Tensor:
    return image_set(data).images[:150]


class Pixels(nn.Module):
    """Means of the quarters of an image, per channel."""

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


class WantsColor(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.conv(images).mean((2, 3))


# ---- the classifier that ships


def test_the_embedded_classifier_knows_unseen_garments(data):
    network = ImageClassifier.from_pretrained(EMBEDDED_FEATURES)
    assert accuracy(network.eval(), data) > 0.92
    size = sum(file.stat().st_size for file in EMBEDDED_FEATURES.glob("*.safetensors"))
    assert size < 2e6
    assert network.config.id2label["8"] == "Bag"


def test_features_do_not_depend_on_order_or_company(images):
    extractor = load_features("auto", GRAY)
    assert extractor.name == "fashion-mnist"
    whole, order = extractor(images), torch.randperm(len(images))
    mixed = extractor(images[order])
    assert torch.equal(mixed.features, whole.features[order]) and torch.equal(mixed.logits, whole.logits[order])
    assert torch.equal(extractor(images[:7]).features, whole.features[:7])
    assert whole.features.shape == (150, 128) and whole.logits.shape == (150, 10)


def test_a_classifier_learns_and_is_read_back_as_it_was_measured(data, tmp_path):
    told = []
    network = train_classifier(data, epochs=5, on_epoch=lambda epoch, network: told.append(epoch))
    save_classifier(tmp_path / "features", network)
    measured = accuracy(network, data)
    assert told == [1, 2, 3, 4, 5] and measured > 0.4  # of 0.1 by chance, in 35 steps
    read = ImageClassifier.from_pretrained(tmp_path / "features", torch_dtype=torch.float32).eval()
    assert accuracy(read, data) == measured
    assert read.config.num_classes == 10 and list(tmp_path.iterdir()) == [tmp_path / "features"]


def test_training_depends_on_the_seed_alone(data):
    one, same, other = (train_classifier(data, epochs=1, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


# ---- other networks


def test_torchscript_and_export(images, tmp_path):
    torch.jit.script(Pixels()).save(tmp_path / "pixels.pt")
    example = torch.zeros(64, *GRAY)
    torch.export.save(torch.export.export(Pixels(), (example,)), tmp_path / "pixels.pt2")
    expected = Pixels()(images.float() / 255)
    for name in ("pixels.pt", "pixels.pt2"):
        found = load_features(str(tmp_path / name), GRAY)(images)
        assert (found.features - expected).abs().max() < 1e-6 and found.logits is None


def test_gray_images_become_rgb_for_a_network_of_rgb(images, tmp_path):
    network = WantsColor()
    torch.jit.script(network).save(tmp_path / "color.pt")
    extractor = load_features(str(tmp_path / "color.pt"), GRAY)
    expected = network(images.float().expand(-1, 3, -1, -1) / 255)
    assert (extractor(images).features - expected).abs().max() < 1e-5
    assert "gray repeated to RGB" in extractor.rule


def test_an_autoencoder_of_diffusers(images, tmp_path):
    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=28
    )
    network.save_pretrained(tmp_path / "vae")
    found = load_features(str(tmp_path / "vae"), GRAY)(images)
    with torch.no_grad():
        pixels = images[:64].float().expand(-1, 3, -1, -1) / 127.5 - 1
        expected = network.encode(pixels).latent_dist.mean.flatten(1)
    assert (found.features[:64] - expected).abs().max() < 1e-5


@pytest.fixture
def inception_weights(tmp_path, monkeypatch) -> str:
    """A file like the one that is fetched, with weights that mean nothing."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("inception", ["2048"], None)
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    return str(tmp_path / "inception.pth")


@pytest.mark.slow
def test_inception_with_weights_from_a_file(images, inception_weights):
    extractor = load_features("inception", GRAY, weights=inception_weights)
    found = extractor(images[:2])
    assert found.features.shape == (2, 2048) and found.logits.shape == (2, 1008)
    assert not extractor.knows(None, 1008)  # ImageNet's classes are not the data set's


def test_inception_that_cannot_be_fetched_is_one_line(monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as module

    def refused(*args, **kwargs):
        raise OSError("connection refused")

    monkeypatch.setattr(module, "load_state_dict_from_url", refused)
    with pytest.raises(UserError, match=r"Inception's weights cannot be loaded .connection refused.; give a file"):
        load_features("inception", GRAY)


# ---- mistakes


def broken_file(folder):
    (folder / "x.pt").write_bytes(b"no network")
    return folder / "x.pt"


def wrong_class(folder):
    diffusers.UNet2DModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    ).save_pretrained(folder / "unet")
    return folder / "unet"


def scalar(folder):
    torch.jit.script(nn.Flatten(0)).save(folder / "flat.pt")
    return folder / "flat.pt"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nothing", "not found; expected fashion-mnist, inception, a folder"),
        (lambda folder: folder, "has no config.json"),
        (broken_file, "cannot be loaded"),
        (wrong_class, "is a UNet2DModel; expected an ImageClassifier or an autoencoder"),
        (scalar, r"returns shape \(\d+,\) for 64 images"),
    ],
)
def test_a_missing_or_wrong_extractor_is_one_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as error:
        load_features(str(make(tmp_path)), GRAY)
    assert "\n" not in str(error.value)


def test_images_the_classifier_is_not_for_are_one_line():
    with pytest.raises(UserError, match=r"are for images of 1x28x28 .channels, height, width., these are 3x32x32"):
        load_features("fashion-mnist", (3, 32, 32))


class Factor(nn.Module):
    """Features and logits, multiplied."""

    def __init__(self, of_features: float, of_logits: float):
        super().__init__()
        self.of_features, self.of_logits = of_features, of_logits

    def forward(self, images):
        pixels = images.flatten(1)[:, 300:303] + 1
        return pixels * self.of_features, pixels * self.of_logits


@pytest.mark.parametrize("factors", [(float("nan"), 1.0), (1.0, float("nan")), (1.0, float("inf")), (1e30, 1.0)])
def test_features_and_logits_that_are_no_numbers_are_one_line(tmp_path, images, factors):
    torch.jit.script(Factor(*factors)).save(tmp_path / "x.pt")
    with pytest.raises(UserError, match="not finite, or beyond"):
        load_features(str(tmp_path / "x.pt"), GRAY)(images)


def test_what_a_torchscript_network_complains_of_is_told(tmp_path):
    torch.jit.script(WantsColor()).save(tmp_path / "color.pt")
    with pytest.raises(UserError, match=r"cannot take images of 4x28x28: .*to have 3 channels, but got 4") as error:
        load_features(str(tmp_path / "color.pt"), (4, 28, 28))
    assert "\n" not in str(error.value)
