"""A tiny model as this version exports it, and what it draws: ``python tests/hub/keep_version.py`` from the checkout.

The folders it has made stay in tests/hub/versions, and must go on loading: models are not exported anew for a new
version of the code.
"""

import sys
from pathlib import Path

import numpy as np

VERSIONS = Path(__file__).parent / "versions"


def draw(pipeline) -> np.ndarray:
    """Pictures of both classes with guidance, (2, H, W, C) in [0, 1]."""
    settings = {"class_labels": [0, 1], "guidance_scale": 2.0, "num_inference_steps": 6, "seed": 3}
    return pipeline(2, **settings, output_type="np").images


def main():
    sys.path[:0] = [str(VERSIONS.parent.parent.parent), str(VERSIONS.parent.parent)]
    import torch
    from helpers import tiny_pipeline
    from safetensors.numpy import save_file

    import ddpm_hf
    from ddpm_hf.hub import export_pipeline, load_pipeline

    torch.set_num_threads(1)
    folder = VERSIONS / ddpm_hf.__version__
    settings = {"num_class_embeds": 2, "residual": True, "normalize_input": False, "attention_levels": (1,)}
    pipeline = tiny_pipeline(id2label={"0": "circle", "1": "square"}, output_size=(7, 6), **settings)
    export_pipeline(folder, pipeline, dtype=torch.float16)
    save_file({"images": draw(load_pipeline(folder))}, folder / "drawn.safetensors")
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
