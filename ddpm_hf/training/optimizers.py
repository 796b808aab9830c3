"""The optimizers of a run: AdamW, and Muon for the weights it is made for with AdamW for the rest."""

import math
from collections import defaultdict

import torch
from torch import nn

from ddpm_hf.config import TrainConfig

# Newton-Schulz iteration of Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks": a quintic
# that is steep at 0 and brings singular values into [0.7, 1.2] in five steps instead of to 1 in many.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPSILON = 1e-7
OUTPUT_LAYERS = ("out_conv", "conv_out")  # of MyUNet and of diffusers' UNet2DModel


def build_optimizer(config: TrainConfig, unet: nn.Module, mixed_precision: str) -> torch.optim.Optimizer:
    """The optimizer over what is trained. The peak rate of each parameter group is its ``peak_lr``.

    mixed_precision: "no", "bf16" or "fp16", as ``Accelerator.mixed_precision``. With "no", nothing is rounded to
    bfloat16, so that results depend on the number of processes by float32's rounding alone.
    """
    options = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
    }
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(trained, **options, fused=True)
    else:
        hidden = hidden_matrices(unet)
        chosen = {id(parameter) for parameter in hidden}
        optimizer = Muon(
            hidden,
            [parameter for parameter in trained if id(parameter) not in chosen],
            muon_lr=config.muon_learning_rate,
            momentum=config.muon_momentum,
            dtype=torch.float32 if mixed_precision == "no" else torch.bfloat16,
            **options,
        )
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def hidden_matrices(unet: nn.Module) -> list[nn.Parameter]:
    """Trained weights of all linear layers and convolutions but the output's: what Muon updates."""
    return [
        module.weight
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and name not in OUTPUT_LAYERS
        and module.weight.requires_grad
        and min(module.weight.shape[0], module.weight[0].numel()) > 1  # a vector has no directions to even out
    ]


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for hidden weight matrices (Jordan et al. 2024), and AdamW for all other parameters.

    One optimizer, so that gradient clipping, loss scaling and skipped steps treat both alike. A convolution's kernel
    (out, in, k, k) is the matrix (out, in k k). Each update is scaled by sqrt(max(1, rows / columns)).

    Args:
        hidden: matrices and kernels, the second parameter group.
        others: parameters updated by AdamW, the first parameter group.
        muon_lr: learning rate of the hidden matrices, about the spectral norm of an update.
        momentum: decay of the (Nesterov) momentum, in [0, 1).
        dtype: of the orthogonalisation, for which bfloat16 is enough.
        lr, betas, weight_decay: AdamW's; the (decoupled) weight decay is for both.
    """

    def __init__(
        self,
        hidden,
        others,
        *,
        muon_lr=0.02,
        momentum=0.95,
        dtype=torch.bfloat16,
        lr=1e-3,
        betas=(0.9, 0.999),
        weight_decay=0.0,
    ):
        self.dtype = dtype
        self.adamw = torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        muon = {"params": hidden, "lr": muon_lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([*self.adamw.param_groups, muon], defaults={})

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters that have a gradient; arguments and result as of ``torch.optim.Optimizer.step``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # the state is kept in one place, this optimizer, which load_state_dict replaces
        self.adamw.state, self.adamw.param_groups = self.state, self.param_groups[:1]
        self.adamw.step()
        self._step_hidden(self.param_groups[1])
        return loss

    def _step_hidden(self, group: dict):
        rate, momentum = group["lr"], group["momentum"]
        by_shape = defaultdict(list)  # matrices of one shape go through the iteration together
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - momentum)
            update = parameter.grad.lerp(state["momentum"], momentum)
            # channels last, as they lie in memory: the order of a matrix's columns is the order of its result's
            update = update.permute(0, 2, 3, 1) if update.ndim == 4 else update
            by_shape[update.shape].append((parameter, update.flatten(1)))
        for shape, items in by_shape.items():
            results = orthogonalise(torch.stack([matrix for _, matrix in items]).to(self.dtype))
            scale = rate * math.sqrt(max(1, results.shape[1] / results.shape[2]))
            for (parameter, _), result in zip(items, results.unflatten(2, shape[1:])):
                result = result.permute(0, 3, 1, 2) if parameter.ndim == 4 else result
                if group["weight_decay"]:
                    parameter.mul_(1 - rate * group["weight_decay"])
                parameter.sub_(result, alpha=scale)


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values go to [0.7, 1.2], singular vectors stay.

    matrices: (N, rows, columns). Computed in their dtype, and returned so.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)  # singular values at most 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # (N, rows, rows), the smaller side
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
