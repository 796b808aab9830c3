"""Which weights of a run to ship, and with which sampling: by the Frechet distance of their images' features.

``choose`` goes from one decision to the next, and keeps the best so far: the weights (the run's averages and the
trained ones), then guidance with its interval, then the number of steps. Of results that are as good within
``AS_GOOD``, the one with the fewest calls of the network is taken. Images are compared with those that the model was
trained on, so that a later evaluation against the test split judges what the choice has not seen.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ddpm_hf.commands.evaluate import run_config
from ddpm_hf.data import Source, open_data
from ddpm_hf.devices import best_device, best_dtype
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.features import FeatureExtractor, load_features
from ddpm_hf.evaluation.scores import frechet_distance, refuse_too_few
from ddpm_hf.image_sets import generated_images, image_set
from ddpm_hf.sampling import Sampling, calls_per_image, own_sampling, with_sampler
from ddpm_hf.training import load_weights_of

AS_GOOD = 1.02  # times the lowest distance
# scale, and the first and the last guided timestep as shares of T
GUIDANCE = ((1.0, 0, 1), (1.5, 0, 1), (1.5, 0, 0.5), (2.0, 0, 0.4), (2.0, 0.15, 0.6), (3.0, 0.2, 0.5))
STEPS = (12, 16, 20, 30)
REFERENCE_IMAGES = 10_000


@dataclass(frozen=True)
class Candidate:
    """weights: "raw", or the decay of an average, as of ``load_weights_of``."""

    weights: str
    sampling: Sampling


@dataclass(frozen=True)
class Measured:
    """A candidate, the calls of its network for an image, and the distance of its images."""

    candidate: Candidate
    calls: int
    fid: float

    def as_json(self) -> dict:
        about = {"weights": self.candidate.weights, **asdict(self.candidate.sampling)}
        return about | {"network_calls": self.calls, "fid": self.fid}

    def __str__(self) -> str:
        sampling = self.candidate.sampling
        guidance = f"guidance {sampling.guidance_scale:g} at {sampling.guidance_interval}"
        how = f"{sampling.sampler}, {sampling.steps} steps, {guidance if sampling.guidance_interval else 'no classes'}"
        return f"weights {self.candidate.weights:8} {how}: {self.calls} network calls, FID {self.fid:.3f}"


def choose(run: Path, dataset: str, weights: str | None, num_images: int) -> tuple[Candidate, list[Measured]]:
    """The best weights and sampling of ``run``, and all that was measured.

    Args:
        run: output_dir of a training run.
        dataset: what it was trained on.
        weights: only these, as of ``load_weights_of``; None is any of the run.
        num_images: generated for every measurement, of seeds 0, 1, ....

    Raises:
        UserError: if there are too few images, or the run or the data cannot be read.
    """
    config = run_config(str(run))
    if config is None:
        raise UserError(f"{run} is not the output_dir of a run: it has no config.yaml.")
    measure = _Measure(run, dataset, num_images)
    names = [weights] if weights else ["raw", *(repr(float(decay)) for decay in config.ema_max_decays)]
    first = own_sampling(load_weights_of(run, names[-1]))
    best = measure.best([Candidate(name, first) for name in names])
    if first.guidance_interval is not None:
        total = config.num_train_timesteps
        guided = [(scale, (round(low * total), round(high * total))) for scale, low, high in GUIDANCE]
        changed = [replace(first, guidance_scale=scale, guidance_interval=where) for scale, where in guided]
        best = measure.best([best, *(replace(best, sampling=sampling) for sampling in changed)])
    counts = [steps for steps in STEPS if steps < config.num_train_timesteps]
    best = measure.best([best, *(replace(best, sampling=replace(best.sampling, steps=steps)) for steps in counts)])
    return best, list(measure.done.values())


class _Measure:
    """Measures candidates, each once."""

    def __init__(self, run: Path, dataset: str, num_images: int):
        self.run, self.num_images = run, num_images
        self.done: dict[Candidate, Measured] = {}
        self.device = best_device()
        unet = load_weights_of(run, "raw").unet.config
        size = {"sample_size": unet.sample_size, "image_mode": "L" if unet.in_channels == 1 else "RGB"}
        train, _ = open_data([Source(dataset)], **size, max_images=REFERENCE_IMAGES, validation_split=None)
        real = image_set(train)
        self.extractor: FeatureExtractor = load_features("auto", real.shape, self.device)
        self.real = self.extractor(real.images).features
        for count, what in ((num_images, "generated"), (len(self.real), "training")):
            refuse_too_few(count, self.real.shape[1], what, self.extractor.name)

    def best(self, candidates: list[Candidate]) -> Candidate:
        results = [self(candidate) for candidate in dict.fromkeys(candidates)]
        lowest = min(result.fid for result in results)
        return min((r for r in results if r.fid <= AS_GOOD * lowest), key=lambda r: (r.calls, r.fid)).candidate

    def __call__(self, candidate: Candidate) -> Measured:
        if candidate in self.done:
            return self.done[candidate]
        sampling = candidate.sampling
        pipeline = load_weights_of(self.run, candidate.weights).to(self.device)
        pipeline.unet.to(best_dtype(self.device))
        sampler = with_sampler(pipeline, sampling.sampler)
        guidance = {"guidance_scale": sampling.guidance_scale, "guidance_interval": sampling.guidance_interval}
        images = generated_images(sampler, self.num_images, steps=sampling.steps, **guidance)
        fid = frechet_distance(self.extractor(images.images).features, self.real)
        timesteps: torch.Tensor = sampler.scheduler.timesteps
        calls = calls_per_image(timesteps.tolist(), sampling.guidance_scale, sampling.guidance_interval)
        self.done[candidate] = Measured(candidate, calls, fid)
        print(self.done[candidate], flush=True)
        return self.done[candidate]
