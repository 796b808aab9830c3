"""The original's training, literally: its network, its ``MyDDPM`` and its loop, for ``benchmarks.train_throughput``.

``MyDDPM`` and ``MyUNet.__init__`` are the original's own lines, float32 and NCHW; what the original does not print
(``MyBlock``, ``MyTESA``, ``forward``, the loop) is reconstructed to its table of parameter counts. The attention is
torch's own ``nn.TransformerEncoderLayer``. Nothing here is imported by the project: it is the yardstick.
"""

import torch
from torch import nn


def sinusoidal_embedding(n, d):
    """Table of sinusoids (n, d)."""
    rates = 10_000 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angles = torch.arange(n, dtype=torch.float64)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1).float()


class MyBlock(nn.Module):
    """LayerNorm over (C, H, W), then twice (3x3 convolution, GroupNorm, SiLU)."""

    def __init__(self, shape, in_c, out_c):
        super().__init__()
        self.ln = nn.LayerNorm(shape)
        self.conv1 = nn.Conv2d(in_c, out_c, 3, padding=1)
        self.norm1 = nn.GroupNorm(8, out_c)
        self.conv2 = nn.Conv2d(out_c, out_c, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, out_c)
        self.activation = nn.SiLU()

    def forward(self, x):
        out = self.activation(self.norm1(self.conv1(self.ln(x))))
        return self.activation(self.norm2(self.conv2(out)))


class MyTESA(nn.Module):
    """Transformer Encoder Self-Attention over the pixels as tokens."""

    def __init__(self, c, size):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            c, 4, dim_feedforward=1024, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
        )

    def forward(self, x):  # (B, C, H, W)
        tokens = self.layer(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(x.shape)


class MyUNet(nn.Module):
    """The original's network; 20,722,881 parameters with one channel and 500 steps."""

    def __init__(self, n_channels=3, n_steps=500, time_emb_dim=256):
        super().__init__()

        # Sinusoidal embedding
        self.time_embed = nn.Embedding(n_steps, time_emb_dim)
        self.time_embed.weight.data = sinusoidal_embedding(n_steps, time_emb_dim)
        self.time_embed.requires_grad_(False)

        # First half
        self.input_conv = MyBlock((n_channels, 32, 32), n_channels, 64)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), MyBlock((64, 16, 16), 64, 64), MyBlock((64, 16, 16), 64, 128))
        self.te1 = self._make_te(time_emb_dim, 64)
        self.sa1 = MyTESA(128, 16)
        self.down2 = nn.Sequential(nn.MaxPool2d(2), MyBlock((128, 8, 8), 128, 128), MyBlock((128, 8, 8), 128, 256))
        self.te2 = self._make_te(time_emb_dim, 128)
        self.sa2 = MyTESA(256, 8)
        self.down3 = nn.Sequential(nn.MaxPool2d(2), MyBlock((256, 4, 4), 256, 256), MyBlock((256, 4, 4), 256, 256))
        self.te3 = self._make_te(time_emb_dim, 256)
        self.sa3 = MyTESA(256, 4)
        self.bottleneck = nn.Sequential(
            MyBlock((256, 4, 4), 256, 512), MyBlock((512, 4, 4), 512, 512), MyBlock((512, 4, 4), 512, 256)
        )

        # Second half
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.up1_conv = nn.Sequential(MyBlock((512, 8, 8), 512, 256), MyBlock((256, 8, 8), 256, 128))
        self.te4 = self._make_te(time_emb_dim, 512)
        self.sa4 = MyTESA(128, 8)
        self.up2_conv = nn.Sequential(MyBlock((256, 16, 16), 256, 128), MyBlock((128, 16, 16), 128, 64))
        self.te5 = self._make_te(time_emb_dim, 256)
        self.sa5 = MyTESA(64, 16)
        self.up3_conv = nn.Sequential(MyBlock((128, 32, 32), 128, 64), MyBlock((64, 32, 32), 64, 64))
        self.te6 = self._make_te(time_emb_dim, 128)
        self.sa6 = MyTESA(64, 32)
        self.out_conv = nn.Conv2d(64, n_channels, (1, 1))

    def forward(self, x, t):  # (B, C, 32, 32), (B, 1)
        t = self.time_embed(t)
        n = len(x)

        def te(layer):
            return layer(t).reshape(n, -1, 1, 1)

        # The embedding goes in after the pooling, whose width it has
        out1 = self.input_conv(x)
        pool, *blocks = self.down1
        out2 = self.sa1(nn.Sequential(*blocks)(pool(out1) + te(self.te1)))
        pool, *blocks = self.down2
        out3 = self.sa2(nn.Sequential(*blocks)(pool(out2) + te(self.te2)))
        pool, *blocks = self.down3
        out4 = self.sa3(nn.Sequential(*blocks)(pool(out3) + te(self.te3)))
        out = self.bottleneck(out4)
        out = self.sa4(self.up1_conv(torch.cat((out3, self.up(out)), 1) + te(self.te4)))
        out = self.sa5(self.up2_conv(torch.cat((out2, self.up(out)), 1) + te(self.te5)))
        out = self.sa6(self.up3_conv(torch.cat((out1, self.up(out)), 1) + te(self.te6)))
        return self.out_conv(out)

    def _make_te(self, dim_in, dim_out):
        return nn.Sequential(nn.SiLU(), nn.Linear(dim_in, dim_out))


class MyDDPM(nn.Module):
    """The original's own lines."""

    def __init__(self, network, n_steps=200, min_beta=10**-4, max_beta=0.02, device=None, image_chw=(3, 32, 32)):
        super().__init__()
        self.n_steps = n_steps
        self.device = device
        self.image_chw = image_chw
        self.network = network.to(device)
        self.betas = torch.linspace(min_beta, max_beta, n_steps).to(device)
        self.alphas = 1 - self.betas
        self.alpha_bars = torch.tensor([torch.prod(self.alphas[: i + 1]) for i in range(len(self.alphas))]).to(device)

    def forward(self, x0, t, eta=None):
        # Make input image more noisy (we can directly skip to the desired step)
        n, c, h, w = x0.shape
        a_bar = self.alpha_bars[t]

        if eta is None:
            eta = torch.randn(n, c, h, w).to(self.device)

        return a_bar.sqrt().reshape(n, 1, 1, 1) * x0 + (1 - a_bar).sqrt().reshape(n, 1, 1, 1) * eta

    def backward(self, x, t):
        return self.network(x, t)


def training_loop(ddpm, loader, optim, device=None):
    """One epoch over ``loader``; a generator that yields after every optimizer step."""
    mse = nn.MSELoss()
    epoch_loss = 0.0
    for batch in loader:
        x0 = batch[0].to(device)
        n = len(x0)
        eta = torch.randn_like(x0).to(device)
        t = torch.randint(0, ddpm.n_steps, (n,)).to(device)
        noisy_imgs = ddpm(x0, t, eta)
        eta_theta = ddpm.backward(noisy_imgs, t.reshape(n, -1))
        loss = mse(eta_theta, eta)
        optim.zero_grad()
        loss.backward()
        optim.step()
        epoch_loss += loss.item() * n / len(loader.dataset)
        yield epoch_loss
