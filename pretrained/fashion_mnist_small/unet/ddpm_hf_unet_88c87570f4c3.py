"""MyUNet: the original's U-Net, from ``input_conv`` to ``out_conv``, with every choice a configuration key.

This file is uploaded beside the weights of every model, so it imports only the standard library, torch and
diffusers. Shapes in comments: B images, C channels, H x W pixels, D embedding width.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

MAX_PERIOD = 10_000  # longest wavelength / 2 pi of the timestep sinusoids (Vaswani et al. 2017, section 3.5)


def _frequencies(dim: int, dtype: torch.dtype = torch.float64, device=None) -> torch.Tensor:
    """Angular frequencies MAX_PERIOD^(-2i/dim) of the dim/2 sine-cosine pairs."""
    exponents = torch.arange(0, dim, 2, dtype=dtype, device=device) / dim
    return torch.exp(-math.log(MAX_PERIOD) * exponents)


def sinusoidal_embedding(num_rows: int, dim: int) -> torch.Tensor:
    """Table of sinusoids, row t = (sin(t f_0), cos(t f_0), sin(t f_1), ...), shape (num_rows, dim), in [-1, 1]."""
    angles = torch.arange(num_rows, dtype=torch.float64)[:, None] * _frequencies(dim)  # (T, D/2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).float()


class TimestepTable(nn.Module):
    """The original's frozen table of sinusoids, extended to fractional timesteps.

    A fractional t is the row floor(t) rotated by the remaining angle (the addition theorems), which is exact
    and leaves the rows of whole timesteps untouched.
    """

    def __init__(self, num_rows: int, dim: int):
        super().__init__()
        table = sinusoidal_embedding(num_rows, dim).to(torch.get_default_dtype())  # as other layers' weights
        self.weight = nn.Parameter(table, requires_grad=False)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        """timestep (B,) in [0, num_rows - 1], whole or fractional -> (B, D)."""
        timestep = timestep.to(torch.float32)
        row = timestep.floor()
        sin, cos = F.embedding(row.long(), self.weight).float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, D/2)
        rest = (timestep - row)[:, None] * _frequencies(self.weight.shape[1], torch.float32, timestep.device)
        rotated = (sin * rest.cos() + cos * rest.sin(), cos * rest.cos() - sin * rest.sin())
        return torch.stack(rotated, dim=-1).flatten(1)


class ImageLayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over (C, H, W) that keeps channels_last tensors channels_last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        weight, bias = self.weight.permute(1, 2, 0), self.bias.permute(1, 2, 0)  # (H, W, C)
        x = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight.contiguous(), bias.contiguous(), self.eps)
        return x.permute(0, 3, 1, 2)


class ImageGroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` whose result for an image does not depend on its place in the batch.

    From 1,024 pixels on, the CPU kernel splits the pixels of the whole batch over threads, and what an image's sums
    are made of depends on where the cuts fall; in bfloat16 that shows in the picture. Where pictures are made and
    threads do not get whole images, these go in one by one.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu":
            return super().forward(x)
        if x.shape[2] * x.shape[3] < 1024 or len(x) % torch.get_num_threads() == 0:
            return super().forward(x)
        return torch.cat([super(ImageGroupNorm, self).forward(image) for image in x.split(1)])


class _SmallMapConv(torch.autograd.Function):
    """``F.conv2d`` with a 3x3 kernel and padding 1, its weight gradient as one matrix product over all patches."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows = grad.permute(0, 2, 3, 1).flatten(0, 2)  # (BHW, out)
        grad_x = torch.nn.grad.conv2d_input(x.shape, weight, grad, padding=1) if ctx.needs_input_grad[0] else None
        grad_weight = (rows.T @ _patches(x)).unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)  # (out, in, 3, 3)
        return grad_x, grad_weight, rows.sum(0)


def _patches(x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (BHW, 9C)
    """The 3x3 neighbourhoods of all pixels, zeros around."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (B, H + 2, W + 2, C)
    return padded.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * x.shape[1])


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d``, made for 3x3 kernels of padding 1: oneDNN's weight gradient is slow on a CPU where maps are small
    and wide."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, in, H, W) -> (B, out, H, W)
        wide = x.device.type == "cpu" and self.in_channels * self.out_channels >= 256 * 256
        usual = self.kernel_size == (3, 3) and self.bias is not None  # not so in the layers that LoRA adds
        if torch.compiler.is_compiling() or not (
            wide and usual and x.shape[2] * x.shape[3] <= 64 and torch.is_grad_enabled()
        ):
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return _SmallMapConv.apply(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class MyBlock(nn.Module):
    """LayerNorm, then twice (3x3 convolution, GroupNorm, SiLU).

    Args:
        shape: (C, H, W) of the input, normalised as a whole.
        in_channels, out_channels: widths before and after.
        residual: add the input (through a 1x1 convolution where the width changes) instead of the last SiLU.
        normalize: False leaves the LayerNorm out.
    """

    def __init__(self, shape, in_channels, out_channels, *, num_groups=8, dropout=0.0, residual=False, normalize=True):
        super().__init__()
        self.norm_in = ImageLayerNorm(shape) if normalize else nn.Identity()
        self.conv1 = Conv3x3(in_channels, out_channels, 3, padding=1)
        self.norm1 = ImageGroupNorm(num_groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv3x3(out_channels, out_channels, 3, padding=1)
        self.norm2 = ImageGroupNorm(num_groups, out_channels)
        self.residual = residual
        if residual:
            same = in_channels == out_channels
            self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, in, H, W) -> (B, out, H, W)
        h = F.silu(self.norm1(self.conv1(self.norm_in(x))))
        h = self.norm2(self.conv2(self.dropout(h)))
        return self.skip(x) + h if self.residual else F.silu(h)


class _HalfAttention(torch.autograd.Function):
    """``scaled_dot_product_attention`` in bfloat16 on a CPU, its gradient by the same kernel in float32.

    The CPU kernel's backward pass is 1.5 to 10 times slower in bfloat16 than in float32; the forward pass is not.
    """

    @staticmethod
    def forward(ctx, query, key, value):  # 3 x (B, heads, N, D) -> (B, heads, N, D)
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx, grad):
        *tensors, logsumexp = ctx.saved_tensors
        single = [tensor.float() for tensor in (grad, *tensors)]
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return tuple(gradient.to(grad.dtype) for gradient in backward(*single, logsumexp, 0.0, False))


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(query key^T / sqrt(D)) value; 3 x (B, heads, N, D) -> (B, heads, N, D)."""
    half = query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled()
    if torch.compiler.is_compiling() or not half:
        return F.scaled_dot_product_attention(query, key, value)
    return _HalfAttention.apply(query, key, value)


class MyTESA(nn.Module):
    """Transformer Encoder Self-Attention: one pre-norm encoder layer over the H*W pixels as tokens.

    The same function as ``nn.TransformerEncoderLayer(channels, num_heads, dim_feedforward, activation="gelu",
    norm_first=True)`` (Vaswani et al. 2017), with the attention through ``scaled_dot_product_attention``.
    """

    def __init__(self, channels, size, *, num_heads=4, dim_feedforward=1024, dropout=0.0):
        super().__init__()
        self.size = size
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (B, C, H, W)
        batch, channels, height, width = x.shape
        if (height, width) != (self.size, self.size):
            raise ValueError(f"MyTESA was built for {self.size}x{self.size} pixels, got {height}x{width}.")
        tokens = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)  # (B, HW, C)
        tokens = tokens + self.dropout(self._attend(self.norm1(tokens)))
        hidden = self.dropout(F.gelu(self.linear1(self.norm2(tokens))))  # (B, HW, dim_feedforward)
        tokens = tokens + self.dropout(self.linear2(hidden))
        return tokens.reshape(batch, height, width, channels).permute(0, 3, 1, 2)

    def _attend(self, tokens: torch.Tensor) -> torch.Tensor:  # (B, HW, C) -> (B, HW, C)
        qkv = self.to_qkv(tokens).unflatten(-1, (3, self.num_heads, -1))  # (B, HW, 3, heads, C/heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B, heads, HW, C/heads)
        out = _attention(query, key, value)
        return self.to_out(out.transpose(1, 2).flatten(2))


class Words(NamedTuple):
    """Captions as the network reads them, made once for all steps of a run by ``MyUNet.words``.

    pooled (B, D): added to the time embedding. keys_values: (B, 2, heads, L, C/heads) for every level that reads words.
    mask (B, 1, 1, L): False where a caption has no token; None if all have L.
    """

    pooled: torch.Tensor
    keys_values: list[torch.Tensor | None]
    mask: torch.Tensor | None


class WordAttention(nn.Module):
    """Attention of the H*W pixels to the words of a caption, pre-norm; its output starts at zero.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.3.
    """

    def __init__(self, channels: int, words_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_kv = nn.Linear(words_dim, 2 * channels)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def keys_values(self, words: torch.Tensor) -> torch.Tensor:  # (B, L, D) -> (B, 2, heads, L, C/heads)
        return self.to_kv(words).unflatten(-1, (2, self.num_heads, -1)).permute(0, 2, 3, 1, 4)

    def forward(self, x, keys_values, mask):  # (B, C, H, W), (B, 2, heads, L, C/heads), (B, 1, 1, L) -> (B, C, H, W)
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C)
        query = self.to_q(self.norm(tokens)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = keys_values.to(query.dtype).unbind(1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, heads, HW, C/heads)
        out = self.to_out(out.transpose(1, 2).flatten(2))
        return x + out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _make_te(dim_in: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(dim_in, dim_out))


class Level(nn.Module):
    """One level of the U-Net: add the projected time embedding, two blocks, attention where configured."""

    def __init__(self, size, in_channels, mid_channels, out_channels, time_embed_dim, block, attention, words):
        super().__init__()
        self.te = _make_te(time_embed_dim, in_channels)
        self.block1 = block((in_channels, size, size), in_channels, mid_channels)
        self.block2 = block((mid_channels, size, size), mid_channels, out_channels)
        self.sa = attention(out_channels, size)
        self.ca = words(out_channels)

    def forward(self, x, emb, keys_values=None, mask=None):  # (B, in, H, W), (B, D), see Words -> (B, out, H, W)
        x = x + self.te(emb)[:, :, None, None].to(x.dtype)
        x = self.sa(self.block2(self.block1(x)))
        return x if self.ca is None else self.ca(x, keys_values, mask)


class MyUNet(ModelMixin, ConfigMixin):
    """The original's noise predictor: 4 resolutions, MyBlock pairs, self-attention after every level.

    With no arguments it is the original's Flowers-102 network (20,728,259 parameters); with ``in_channels=1,
    out_channels=1`` its Fashion-MNIST network (20,722,881). Ho et al. 2020, "Denoising Diffusion Probabilistic
    Models", appendix B, describes the family.

    Args:
        sample_size: height and width of the images in pixels, divisible by patch_size * 2^(levels - 1).
        in_channels, out_channels: 3 for RGB, 1 for grayscale.
        block_out_channels: width of each level, highest resolution first; the last is the bottleneck's.
        num_train_timesteps: rows of the frozen time table; timesteps lie in [0, num_train_timesteps - 1].
        time_embed_dim: width of the time (and class) embedding, even.
        attention_levels: levels with self-attention, 0 being full resolution; None means all of them.
        num_attention_heads: heads of every attention; must divide the width of each level that has it.
        feed_forward_dim: hidden width of every attention's feed-forward part.
        norm_num_groups: groups of every GroupNorm; must divide every width.
        residual: residual blocks (False: the original's plain ones).
        normalize_input: LayerNorm on the raw input (True: as the original; False keeps the overall brightness).
        num_class_embeds: number of classes, or None for an unconditional model. One more row is kept for the
            null class of classifier-free guidance (Ho and Salimans 2022), whose label is ``num_class_embeds``.
        dropout: probability, inside blocks and attention.
        patch_size: side in pixels of the patches that the network works on. Above 1, the patches become channels
            before ``input_conv`` and pixels again after ``out_conv``, so that level i works on maps of side
            sample_size / patch_size / 2^i (Hoogeboom et al. 2023, "simple diffusion", section 3.3).
        cross_attention_dim: width of a text encoder's output, or None for a model without captions. Levels with
            self-attention then attend to the words as well, and the mean of the words is added to the time embedding.

    Raises:
        ValueError: for settings that do not fit together, naming the setting and a value that fits.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: tuple[int, ...] = (64, 128, 256, 512),
        num_train_timesteps: int = 500,
        time_embed_dim: int = 256,
        attention_levels: tuple[int, ...] | None = None,
        num_attention_heads: int = 4,
        feed_forward_dim: int = 1024,
        norm_num_groups: int = 8,
        residual: bool = False,
        normalize_input: bool = True,
        num_class_embeds: int | None = None,
        dropout: float = 0.0,
        patch_size: int = 1,
        cross_attention_dim: int | None = None,
    ):
        super().__init__()
        self._check_config()
        widths = block_out_channels
        sizes = [sample_size // patch_size >> i for i in range(len(widths))]
        attended = range(len(widths)) if attention_levels is None else attention_levels

        def block(shape, width_in, width_out, **kwargs):
            options = {"num_groups": norm_num_groups, "dropout": dropout, "residual": residual, **kwargs}
            return MyBlock(shape, width_in, width_out, **options)

        def attention(level):
            if level not in attended:
                return lambda channels, size: nn.Identity()
            options = {"num_heads": num_attention_heads, "dim_feedforward": feed_forward_dim, "dropout": dropout}
            return lambda channels, size: MyTESA(channels, size, **options)

        def words(level):
            reads = cross_attention_dim is not None and level in attended
            return lambda channels: WordAttention(channels, cross_attention_dim, num_attention_heads) if reads else None

        self.time_embed = TimestepTable(num_train_timesteps, time_embed_dim)
        self.class_embed = None if num_class_embeds is None else nn.Embedding(num_class_embeds + 1, time_embed_dim)

        patch_channels = in_channels * patch_size**2
        shape = (patch_channels, sizes[0], sizes[0])
        self.input_conv = block(shape, patch_channels, widths[0], normalize=normalize_input)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList()
        for i in range(1, len(widths)):
            width_out = widths[min(i, len(widths) - 2)]  # the last width is the bottleneck's alone
            self.down.append(
                Level(sizes[i], widths[i - 1], widths[i - 1], width_out, time_embed_dim, block, attention(i), words(i))
            )
        shape = (sizes[-1], sizes[-1])
        self.bottleneck = nn.Sequential(
            block((widths[-2], *shape), widths[-2], widths[-1]),
            block((widths[-1], *shape), widths[-1], widths[-1]),
            block((widths[-1], *shape), widths[-1], widths[-2]),
        )
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.up = nn.ModuleList()
        for i in reversed(range(len(widths) - 1)):
            width_out = widths[max(i - 1, 0)]
            self.up.append(
                Level(sizes[i], 2 * widths[i], widths[i], width_out, time_embed_dim, block, attention(i), words(i))
            )
        self.out_conv = nn.Conv2d(widths[0], out_channels * patch_size**2, 1)
        self.words_embed = None
        if cross_attention_dim is not None:
            self.words_embed = nn.Sequential(
                nn.LayerNorm(cross_attention_dim), nn.Linear(cross_attention_dim, time_embed_dim)
            )
            nn.init.zeros_(self.words_embed[1].weight)
            nn.init.zeros_(self.words_embed[1].bias)
        self.gradient_checkpointing = False

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """As of ``ConfigMixin``; ``auto_map``, which tells diffusers' AutoModel where this code is, is no setting."""
        settings = {name: value for name, value in config_dict.items() if name != "auto_map"}
        return super().extract_init_dict(settings, **kwargs)

    def _check_config(self):
        c = self.config
        levels = len(c.block_out_channels)
        names = ["sample_size", "in_channels", "out_channels", "num_train_timesteps", "time_embed_dim"]
        names += ["num_attention_heads", "feed_forward_dim", "norm_num_groups", "patch_size"]
        counts = {name: c[name] for name in names}
        counts |= {name: c[name] for name in ("num_class_embeds", "cross_attention_dim") if c[name] is not None}
        counts |= {f"block_out_channels[{i}]": width for i, width in enumerate(c.block_out_channels)}
        for name, value in counts.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if levels < 2:
            raise ValueError(f"block_out_channels needs at least 2 widths, got {tuple(c.block_out_channels)}.")
        factor = c.patch_size * 2 ** (levels - 1)
        if c.sample_size < factor or c.sample_size % factor:
            nearest = max(1, round(c.sample_size / factor)) * factor
            patches = f"patches of {c.patch_size} pixels and " if c.patch_size > 1 else ""
            raise ValueError(
                f"sample_size={c.sample_size} is not divisible by {factor}, the downsampling factor of {patches}"
                f"{levels} levels; the nearest size that works is {nearest}."
            )
        if c.time_embed_dim % 2:
            raise ValueError(f"time_embed_dim={c.time_embed_dim} must be even: it holds sine-cosine pairs.")
        for width in c.block_out_channels:
            if width % c.norm_num_groups:
                raise ValueError(f"norm_num_groups={c.norm_num_groups} must divide every width, not so for {width}.")
        attended = range(levels) if c.attention_levels is None else c.attention_levels
        for level in attended:
            if not 0 <= level < levels:
                raise ValueError(f"attention_levels={tuple(attended)}: levels go from 0 to {levels - 1}.")
            # level i is left at width i going down (the last at the one above it), at width i - 1 going up
            for width in {c.block_out_channels[min(level, levels - 2)], c.block_out_channels[max(level - 1, 0)]}:
                if width % c.num_attention_heads:
                    raise ValueError(
                        f"num_attention_heads={c.num_attention_heads} must divide the width {width} of level {level}."
                    )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | Words | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict the noise in ``sample`` (or v, or x_0: whatever the model was trained to predict).

        Args:
            sample: (B, in_channels, sample_size, sample_size), x_t.
            timestep: one number for all images or (B,), in [0, num_train_timesteps - 1], whole or fractional.
            class_labels: (B,) in [0, num_class_embeds], the last being the null class; None means the null class.
            encoder_hidden_states: (B, L, cross_attention_dim), the words of a caption for each image, or what ``words``
                made of them; for a model with cross_attention_dim alone. No caption is that of an empty text.
            encoder_attention_mask: (B, L), 1 for tokens and 0 for padding; None means that all are tokens.
            return_dict: False returns a plain tuple.

        Returns:
            ``UNet2DOutput`` with ``.sample`` (B, out_channels, sample_size, sample_size).
        """
        self._check_sample(sample)
        emb = self._embed(sample, timestep, class_labels)  # (B, D)
        words = encoder_hidden_states
        if not isinstance(words, Words):
            words = self.words(encoder_hidden_states, encoder_attention_mask)
        of_levels = iter([None] * (len(self.down) + len(self.up)))
        if words is not None:
            if words.pooled.shape[0] != sample.shape[0]:
                raise ValueError(f"there are {words.pooled.shape[0]} captions for {sample.shape[0]} images.")
            emb, of_levels = emb + words.pooled.float(), iter(words.keys_values)
        emb = emb.to(sample.dtype)
        mask = None if words is None else words.mask

        patch = self.config.patch_size
        x = F.pixel_unshuffle(sample, patch) if patch > 1 else sample  # (B, in * P^2, S, S), S = sample_size / P
        x = self._run(self.input_conv, x)  # (B, c0, S, S)
        skips = []
        for level in self.down:
            skips.append(x)
            x = self._run(level, self.pool(x), emb, next(of_levels), mask)  # (B, c_i, S/2^i, S/2^i)
        x = self._run(self.bottleneck, x)
        for level in self.up:
            x = torch.cat((skips.pop(), _dense_gradient(self.upsample(x))), dim=1)  # (B, 2 c_i, S/2^i, S/2^i)
            x = self._run(level, x, emb, next(of_levels), mask)
        x = self.out_conv(x)  # (B, out * P^2, S, S)
        x = F.pixel_shuffle(x, patch) if patch > 1 else x  # (B, out, sample_size, sample_size)
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def words(self, encoder_hidden_states: torch.Tensor | None, mask: torch.Tensor | None = None) -> Words | None:
        """What ``forward`` needs of captions, the same at all steps; None for a model without.

        Args:
            encoder_hidden_states: (B, L, cross_attention_dim).
            mask: (B, L), 1 for tokens and 0 for padding; each caption has at least one token.

        Raises:
            ValueError: if the model has no captions and some are given, or none are, or their shape is another.
        """
        width = self.config.cross_attention_dim
        if width is None:
            if encoder_hidden_states is not None:
                raise ValueError("encoder_hidden_states were given, but the model has no cross_attention_dim.")
            return None
        if encoder_hidden_states is None or encoder_hidden_states.ndim != 3 or encoder_hidden_states.shape[2] != width:
            given = None if encoder_hidden_states is None else tuple(encoder_hidden_states.shape)
            raise ValueError(f"encoder_hidden_states must have shape (B, L, {width}), got {given}.")
        if mask is not None:
            if mask.shape != encoder_hidden_states.shape[:2]:
                shape = tuple(encoder_hidden_states.shape[:2])
                raise ValueError(f"encoder_attention_mask must have shape {shape}, got {tuple(mask.shape)}.")
            mask = mask.to(encoder_hidden_states.device, torch.bool)
            _check(mask.any(dim=1).all(), "encoder_attention_mask: every caption needs a token.")
        words = encoder_hidden_states.to(self.words_embed[1].weight.dtype)
        share = torch.ones_like(words[..., :1]) if mask is None else mask[..., None].to(words.dtype)  # (B, L, 1)
        mean = (words * share).sum(1) / share.sum(1)
        levels = [level.ca for level in (*self.down, *self.up)]
        keys_values = [None if ca is None else ca.keys_values(words) for ca in levels]
        return Words(self.words_embed(mean), keys_values, None if mask is None else mask[:, None, None])

    def _run(self, module: nn.Module, *args: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(module, *args)
        return module(*args)

    def _check_sample(self, sample: torch.Tensor):
        expected = (self.config.in_channels, self.config.sample_size, self.config.sample_size)
        if sample.ndim != 4 or tuple(sample.shape[1:]) != expected:
            raise ValueError(f"sample must have shape (B, {', '.join(map(str, expected))}), got {tuple(sample.shape)}.")

    def _embed(self, sample, timestep, class_labels) -> torch.Tensor:
        """Time embedding plus class embedding, (B, D), float32."""
        batch, device = sample.shape[0], sample.device
        timestep = torch.as_tensor(timestep).to(torch.float32)  # a bfloat16 499 would compare as 500
        _check_range("timestep", timestep, self.config.num_train_timesteps - 1)
        emb = self.time_embed(_one_each("timestep", timestep.to(device), batch))
        if self.class_embed is None:
            if class_labels is not None:
                raise ValueError("class_labels were given, but the model is unconditional (num_class_embeds=None).")
            return emb
        null = self.config.num_class_embeds
        class_labels = torch.as_tensor(null if class_labels is None else class_labels)
        _check_range("class_labels", class_labels, null)
        return emb + self.class_embed(_one_each("class_labels", class_labels.to(device), batch)).float()


def _dense_gradient(x: torch.Tensor) -> torch.Tensor:
    """``x``, its gradient in the same memory format: as a slice of another tensor, interpolation is 10 times slower."""
    if x.requires_grad and not torch.compiler.is_compiling() and x.is_contiguous(memory_format=torch.channels_last):
        x.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return x


def _one_each(name: str, values: torch.Tensor, batch: int) -> torch.Tensor:
    """``values`` as (B,): one for all, or one for each of the B images."""
    values = values.reshape(-1)
    if values.shape[0] not in (1, batch):  # len() would fix the batch size of an exported graph
        raise ValueError(f"{name} must be one for all or one for each of {batch} images, got {len(values)}.")
    return values.expand(batch)


def _check_range(name: str, values: torch.Tensor, last: int):
    """Refuse values outside [0, last], NaN included, without a device synchronisation or a graph break."""
    _check(((values >= 0) & (values <= last)).all(), f"{name} must lie in [0, {last}].", values)


def _check(condition: torch.Tensor, message: str, values: torch.Tensor | None = None):
    """Raise a ValueError unless ``condition``; on CUDA, where waiting for it costs time, by an assertion there."""
    if torch.compiler.is_compiling() or condition.device.type in ("cuda", "meta"):
        torch._assert_async(condition, message)
    elif not condition:  # other accelerators have no such assertion, and wait
        raise ValueError(message if values is None else f"{message[:-1]}, got {values.tolist()}.")
