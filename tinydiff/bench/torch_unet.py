"""PyTorch's contestant on a GPU: the shipped U-Net in plain ``torch.nn``.

No other library has to be there.  It takes the published configuration and tensor names, as far as
the shipped model uses them, and is called as diffusers' network is.  The choices are PyTorch's
best: its fused scaled dot-product attention, and ``F.group_norm`` and ``F.silu``, which
``torch.compile`` joins.
"""
from pathlib import Path
from types import SimpleNamespace

try:
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812 - its usual name
except ImportError:
    torch, nn = None, SimpleNamespace(Module=object)


class ResnetBlock(nn.Module):
    """Two convolutions around a residual; the time is added between them."""

    def __init__(self, c_in, c_out, emb, groups):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, c_in), nn.GroupNorm(groups, c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x, emb):
        """Map (B, c_in, H, W) to (B, c_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Multi-head attention with its projections."""

    def __init__(self, dim, context_dim, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x, context):
        """Map tokens (B, N, dim), asking (B, M, context_dim)."""
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        o = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](o.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """A projection, one half of which gates the other."""

    def __init__(self, dim, inner):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x):
        """Map (B, N, dim) to (B, N, inner)."""
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        return hidden * F.gelu(gate)


class FeedForward(nn.Module):
    """Two linear layers with a gate; place 1 of the published list is a dropout."""

    def __init__(self, dim):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x):
        """Map (B, N, dim) to the same shape."""
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each around a residual."""

    def __init__(self, dim, context_dim, heads):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn1 = Attention(dim, dim, heads)
        self.attn2 = Attention(dim, context_dim, heads)
        self.ff = FeedForward(dim)

    def forward(self, x, context):
        """Map tokens (B, N, dim) to the same shape."""
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """A token for each pixel, one transformer block, and back."""

    def __init__(self, channels, context_dim, heads, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in, self.proj_out = (nn.Linear(channels, channels) for _ in range(2))
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context_dim, heads)])

    def forward(self, x, context):
        """Map (B, C, H, W) to the same shape."""
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))     # (B, H*W, C)
        h = self.proj_out(self.transformer_blocks[0](h, context))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class Conv(nn.Module):
    """A convolution under the name ``conv``, as the published down- and upsamplers have it."""

    def __init__(self, channels, stride):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1)

    def forward(self, x):
        """Convolve."""
        return self.conv(x)


class Block(nn.Module):
    """One level of the U: residual blocks, transformers, and perhaps a change of size."""

    def __init__(self, channels, emb, groups, transformer, **change):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(i, o, emb, groups) for i, o in channels)
        if transformer:
            self.attentions = nn.ModuleList(transformer() for _ in range(change.pop("n")))
        for name, layer in change.items():
            if name != "n":
                setattr(self, name, nn.ModuleList([layer]))

    def attend(self, i, x, context):
        """Apply transformer `i`, if the level has any."""
        return self.attentions[i](x, context) if hasattr(self, "attentions") else x


class Embedding(nn.Module):
    """Two linear layers around SiLU."""

    def __init__(self, dim, emb):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(dim, emb), nn.Linear(emb, emb)

    def forward(self, x):
        """Map (B, dim) to (B, emb)."""
        return self.linear_2(F.silu(self.linear_1(x)))


class UNet(nn.Module):
    """The shipped U-Net: one layer a level, cross-attention, linear projections around it.

    Parameters
    ----------
    config : dict
        A published ``config.json``.
    """

    def __init__(self, config):
        super().__init__()
        c, groups = config["block_out_channels"], config["norm_num_groups"]
        n, emb = len(c), 4 * c[0]
        assert config["layers_per_block"] == [1] * n and config["class_embed_type"] is None
        assert config["resnet_time_scale_shift"] == "default" and config["flip_sin_to_cos"]
        assert config["use_linear_projection"]
        transformer = lambda i: lambda: Transformer(c[i], config["cross_attention_dim"][i],
                                                    config["attention_head_dim"][i], groups)
        crosses = lambda kind, i: transformer(i) if kind.startswith("CrossAttn") else None
        self.dim = c[0]
        self.conv_in = nn.Conv2d(config["in_channels"], c[0], 3, padding=1)
        self.time_embedding = Embedding(c[0], emb)
        self.down_blocks = nn.ModuleList(
            Block([(c[max(i - 1, 0)], c[i])], emb, groups, crosses(kind, i), n=1,
                  **({"downsamplers": Conv(c[i], 2)} if i < n - 1 else {}))
            for i, kind in enumerate(config["down_block_types"]))
        self.mid_block = Block([(c[-1], c[-1])] * 2, emb, groups, transformer(-1), n=1)
        skips = [c[0], *(x for i in range(n) for x in [c[i]] * (1 + (i < n - 1)))]
        self.up_blocks = nn.ModuleList()
        for i, kind in zip(reversed(range(n)), config["up_block_types"], strict=True):
            below = c[min(i + 1, n - 1)]
            pairs = [(below + skips.pop(), c[i]), (c[i] + skips.pop(), c[i])]
            self.up_blocks.append(Block(pairs, emb, groups, crosses(kind, i), n=2,
                                        **({"upsamplers": Conv(c[i], 1)} if i else {})))
        self.conv_norm_out = nn.GroupNorm(groups, c[0])
        self.conv_out = nn.Conv2d(c[0], config["out_channels"], 3, padding=1)

    def forward(self, x, timestep, encoder_hidden_states, return_dict=False):
        """Predict; called as diffusers' network is, and like it returns a tuple of one."""
        context, half = encoder_hidden_states, self.dim // 2
        t = torch.as_tensor(timestep, device=x.device).float().expand(x.shape[0])
        i = torch.arange(half, device=x.device, dtype=torch.float32)
        angle = t[:, None] * torch.exp(-9.210340371976184 / half * i)  # log 10000
        emb = self.time_embedding(torch.cat([angle.cos(), angle.sin()], dim=1))
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = block.attend(0, block.resnets[0](x, emb), context)
            skips.append(x)
            if hasattr(block, "downsamplers"):
                x = block.downsamplers[0](x)
                skips.append(x)
        x = self.mid_block.attend(0, self.mid_block.resnets[0](x, emb), context)
        x = self.mid_block.resnets[1](x, emb)
        for block in self.up_blocks:
            for i, resnet in enumerate(block.resnets):
                x = block.attend(i, resnet(torch.cat([x, skips.pop()], dim=1), emb), context)
            if hasattr(block, "upsamplers"):
                x = block.upsamplers[0](F.interpolate(x, scale_factor=2.0))
        return (self.conv_out(F.silu(self.conv_norm_out(x))),)


def load(folder):
    """Open a folder with the shipped model's ``config.json`` and weights, on the processor."""
    from tinydiff.jsonfile import read_object
    from tinydiff.models.pretrained import find_weights
    from tinydiff.safetensors import read_safetensors

    model = UNet(read_object(Path(folder) / "config.json"))
    tensors = read_safetensors(find_weights(folder))
    model.load_state_dict({name: torch.from_numpy(x.astype("float32"))
                           for name, x in tensors.items()})
    return model
