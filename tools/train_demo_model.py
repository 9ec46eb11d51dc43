"""Train a very small, real Wan text-to-video pipeline from scratch and save it in the diffusers layout.

    python tools/train_demo_model.py --out demo_model                 # 2 CPU cores: the schedule of the shipped weights (about 45 minutes)
    python tools/train_demo_model.py --out demo_model --scale 4       # four times the steps: sharper shapes, better binding
    python tools/train_demo_model.py --out demo_model --device cuda --procs 1 --batch 8 --scale 6 --clips 40000   # one GPU
    python tools/train_demo_model.py --out demo_model --stages export,eval       # only re-export and measure

The data is drawn on the fly (no downloads): one shaded shape moving over a plain or simple scenic background,
64x96 pixels, 17 frames, with a caption from a small grammar. Stages, each resumable from files in --work:

  vae      AutoencoderKLWan (residual 5B-style layout, 8x space, 4x time, 12 channels) on crops around the shape
  latents  encode --clips clips with the frozen encoder
  dit      WanTransformer3DModel + UMT5EncoderModel, jointly, flow matching with the shift the scheduler uses
  decoder  fine-tune the VAE decoder with the encoder frozen, on noisier latents
  export   WanPipeline.save_pretrained (safetensors; transformer and VAE in half precision)
  eval     reload in WanPipeline.from_pretrained, generate held-out attribute combinations, judge them, contact sheet

Needs torch, diffusers, transformers, numpy, Pillow. Seeds are fixed; results still differ slightly between machines
and thread counts because floating-point sums are ordered differently.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

# ------------------------------------------------------------------ data: captions and clips
H, W, FRAMES = 64, 96, 17
SHAPES = {"circle": ["circle", "ball", "disc"], "square": ["square", "box"], "triangle": ["triangle"], "star": ["star"]}
COLOURS = {
    "red": (225, 35, 40),
    "green": (45, 185, 65),
    "blue": (45, 90, 235),
    "yellow": (248, 220, 45),
    "orange": (248, 138, 25),
    "purple": (150, 55, 205),
    "pink": (252, 135, 195),
    "white": (248, 248, 248),
}
BACKGROUNDS = {  # top colour, bottom colour, horizon (None: smooth gradient)
    "black": ((10, 10, 12), (22, 22, 26), None),
    "white": ((250, 250, 250), (226, 226, 230), None),
    "grey": ((140, 140, 142), (112, 112, 116), None),
    "dark blue": ((14, 22, 74), (26, 40, 108), None),
    "light blue": ((140, 200, 246), (178, 222, 250), None),
    "dark green": ((10, 56, 30), (20, 82, 46), None),
    "dark red": ((78, 8, 18), (110, 18, 28), None),
    "sunset": ((92, 44, 120), (250, 150, 84), None),
    "meadow": ((150, 206, 248), (84, 158, 66), 0.62),
    "sea": ((190, 224, 246), (24, 88, 150), 0.55),
}
BG_PHRASES = {
    "sunset": ["at sunset", "over a sunset sky", "in front of a sunset", "against a sunset sky"],
    "meadow": ["over a green meadow", "in a meadow", "over a meadow", "above a green meadow"],
    "sea": ["over the sea", "above the sea", "over the ocean", "above the blue ocean"],
}
MOTIONS = {
    "left": [
        "moving left",
        "moving to the left",
        "moves left",
        "moves to the left",
        "sliding left",
        "slides to the left",
        "drifting left",
        "flying to the left",
        "going left",
    ],
    "right": [
        "moving right",
        "moving to the right",
        "moves right",
        "moves to the right",
        "sliding right",
        "slides to the right",
        "drifting right",
        "flying to the right",
        "going right",
    ],
    "up": ["moving up", "moves up", "rising", "rises", "moving upwards", "going up", "flying up", "floating up"],
    "down": ["moving down", "moves down", "falling", "falls", "moving downwards", "going down", "dropping", "sinking"],
    "grow": ["growing", "grows", "getting bigger", "growing larger", "getting larger"],
    "shrink": ["shrinking", "shrinks", "getting smaller", "growing smaller"],
    "spin": ["spinning", "spins", "rotating", "rotates", "turning around", "spinning around"],
    "bounce": ["bouncing", "bounces", "bouncing up and down", "jumping", "jumping up and down", "bounces up and down"],
    "still": ["standing still", "not moving", "staying still", "at rest"],
}
FRONT = {
    "left": [],
    "right": [],
    "up": ["rising"],
    "down": ["falling", "sinking"],
    "grow": ["growing"],
    "shrink": ["shrinking"],
    "spin": ["spinning", "rotating"],
    "bounce": ["bouncing", "jumping"],
    "still": ["still", "motionless"],
}
PREFIX = ["a video of", "a clip of", "an animation of", "a short video of"]
SUFFIX = ["simple animation", "high quality", "smooth motion", "flat colours"]
NEGATIVES = [
    "",
    "",
    "",
    "blurry, low quality",
    "static, blurry, low quality, distorted, watermark, text",
    "bright colours, overexposed, static, blurred details, subtitles, worst quality, low quality",
]
SHAPE_L, COLOUR_L, BG_L, MOTION_L = list(SHAPES), list(COLOURS), list(BACKGROUNDS), list(MOTIONS)


def allowed(s, c, b, m):
    if s == "circle" and m == "spin":
        return False
    if c == "white" and b == "white":
        return False
    return True


def held_out(s, c, b, m):
    return (SHAPE_L.index(s) * 7 + COLOUR_L.index(c) * 3 + BG_L.index(b) * 5 + MOTION_L.index(m) * 2) % 11 == 0


def sample_attrs(rng, test=False):
    while True:
        a = (rng.choice(SHAPE_L), rng.choice(COLOUR_L), rng.choice(BG_L), rng.choice(MOTION_L))
        if allowed(*a) and held_out(*a) == test:
            return a


def bg_phrase(rng, b):
    if b in BG_PHRASES:
        return rng.choice(BG_PHRASES[b])
    gray = rng.choice(["grey", "gray"]) if b == "grey" else b
    return rng.choice(
        [
            "over a {} background",
            "on a {} background",
            "against a {} background",
            "in front of a {} background",
            "on {}",
        ]
    ).format(gray)


def caption(rng, attrs):
    s, c, b, m = attrs
    noun = rng.choice(SHAPES[s])
    mot = rng.choice(MOTIONS[m])
    bg = bg_phrase(rng, b)
    art = rng.choice(["a", "a", "a", "the", "one"])
    subj = f"{art} {c} {noun}"
    r = rng.random()
    if r < 0.5:
        t = f"{subj} {mot} {bg}"
    elif r < 0.6:
        t = f"{bg}, {subj} {mot}"
    elif r < 0.7:
        t = f"{subj} {bg}, {mot}"
    elif r < 0.8:
        t = f"{subj} {mot}, {bg}"
    elif r < 0.88 and FRONT[m]:
        t = f"{art} {rng.choice(FRONT[m])} {c} {noun} {bg}"
    elif r < 0.94:
        t = f"{art} {noun} that is {c} {mot} {bg}"
    else:
        t = f"{subj} {mot} {bg}"
    q = rng.random()
    if q < 0.06:
        t = f"{rng.choice(PREFIX)} {t}"
    elif q < 0.12:
        t = f"{t}, {rng.choice(SUFFIX)}"
    elif q < 0.18:
        t += "."
    return t


def all_words():
    txt = []
    for d in (SHAPES, MOTIONS, BG_PHRASES, FRONT):
        for v in d.values():
            txt += v
    txt += PREFIX + SUFFIX + NEGATIVES + COLOUR_L + BG_L
    txt += [
        "over a background on against in front of the one an that is gray , . and slowly quickly small big large little video bright dark light colour color moving shape scene camera sky night"
    ]
    ws = sorted(set(re.findall(r"[a-z]+", " ".join(txt).lower())))
    return ws


def sample_params(rng, attrs, h=H, w=W, frames=FRAMES):
    """per-frame cx, cy, radius, angle plus colours -> dict of lists"""
    s, c, b, m = attrs
    t = [i / (frames - 1) for i in range(frames)]
    r = rng.uniform(9, 12.5)
    ang0 = rng.uniform(-0.15, 0.15)
    cx, cy = rng.uniform(w * 0.35, w * 0.65), rng.uniform(h * 0.38, h * 0.62)
    X, Y, R, A = [cx] * frames, [cy] * frames, [r] * frames, [ang0] * frames
    if m in ("left", "right"):
        d = rng.uniform(70, 96) * w / 160
        x0 = w / 2 + d / 2 + rng.uniform(-5, 5)
        x1 = x0 - d
        X = [x0 + (x1 - x0) * u for u in t]
        if m == "right":
            X = [w - x for x in X]
    elif m in ("up", "down"):
        d = rng.uniform(42, 56) * h / 96
        y0 = h / 2 + d / 2 + rng.uniform(-2, 2)
        y1 = y0 - d
        Y = [y0 + (y1 - y0) * u for u in t]
        if m == "down":
            Y = [h - y for y in Y]
    elif m in ("grow", "shrink"):
        a, z = rng.uniform(5, 7), rng.uniform(17, 21)
        cy = h / 2 + rng.uniform(-4, 4)
        Y = [cy] * frames
        R = [a + (z - a) * u for u in t]
        if m == "shrink":
            R = R[::-1]
    elif m == "spin":
        k = rng.choice([-1, 1]) * rng.uniform(1.6, 2.4)
        R = [rng.uniform(12, 15.5)] * frames
        A = [ang0 + k * math.pi / 2 * 2 * u / 1.6 for u in t]
    elif m == "bounce":
        lo = h * 0.72 - rng.uniform(0, 4)
        amp = rng.uniform(32, 42) * h / 96
        ph = rng.uniform(0, 0.25)
        Y = [lo - amp * abs(math.sin(math.pi * (2 * u + ph))) for u in t]
    j = lambda col: [max(0, min(255, v + rng.uniform(-5, 5))) for v in col]
    top, bot, hz = BACKGROUNDS[b]
    return dict(
        shape=SHAPE_L.index(s),
        x=X,
        y=Y,
        r=R,
        a=A,
        col=j(COLOURS[c]),
        top=j(top),
        bot=j(bot),
        hz=-1.0 if hz is None else hz + rng.uniform(-0.07, 0.07),
    )


def _star(x, y, r=1.12, rf=0.45):
    """signed distance to a five-pointed star, point up (reflection folds)"""
    y = -y
    k1x, k1y = 0.809016994375, -0.587785252292
    x = x.abs()
    d = 2 * (k1x * x + k1y * y).clamp(min=0)
    x = x - d * k1x
    y = y - d * k1y
    d = 2 * (-k1x * x + k1y * y).clamp(min=0)
    x = x + d * k1x
    y = y - d * k1y
    x = x.abs()
    y = y - r
    bx, by = -rf * k1y, rf * k1x - 1
    h = ((x * bx + y * by) / (bx * bx + by * by)).clamp(0, r)
    return ((x - bx * h) ** 2 + (y - by * h) ** 2).sqrt() * torch.sign(y * bx - x * by)


def render(params, h=H, w=W, ox=None, oy=None):
    return torch.cat(
        [
            _render([p], h, w, None if ox is None else ox[i : i + 1], None if oy is None else oy[i : i + 1])
            for i, p in enumerate(params)
        ]
    )


def _render(params, h=H, w=W, ox=None, oy=None):
    """list of params -> (B,3,T,h,w) float in [-1,1]; ox/oy: per-clip crop offsets; full canvas heights for gradient = H"""
    B = len(params)
    f = lambda k: torch.tensor([p[k] for p in params], dtype=torch.float32)
    x, y, r, a = f("x"), f("y"), f("r"), f("a")
    T = x.shape[1]
    gx = torch.arange(w).float()[None, None, None, :] + 0.5
    gy = torch.arange(h).float()[None, None, :, None] + 0.5
    if ox is not None:
        gx = gx + torch.tensor(ox).float().view(B, 1, 1, 1)
        gy = gy + torch.tensor(oy).float().view(B, 1, 1, 1)
    v = lambda z: z[:, :, None, None]
    dx, dy = (gx - v(x)) / v(r), (gy - v(y)) / v(r)
    ca, sa = v(a.cos()), v(a.sin())
    qx, qy = dx * ca + dy * sa, dy * ca - dx * sa
    sd = torch.empty(B, T, h, w)
    sh = torch.tensor([p["shape"] for p in params])
    for k in range(4):
        m = (sh == k).nonzero().flatten()
        if len(m) == 0:
            continue
        X, Y = qx[m], qy[m]
        if k == 0:
            d = (X * X + Y * Y).sqrt() - 1
        elif k == 1:
            d = torch.maximum(X.abs(), Y.abs()) - 0.88
        elif k == 2:
            d = torch.maximum(0.8660254 * X.abs() - 0.5 * Y - 0.575, Y - 0.575)
        else:
            d = _star(X, Y)
        sd[m] = d
    alpha = (0.5 - sd * v(r) / 1.3).clamp(0, 1)[:, None]
    top, bot, col = f("top")[:, :, None, None, None], f("bot")[:, :, None, None, None], f("col")[:, :, None, None, None]
    hz = f("hz").view(B, 1, 1, 1, 1)
    yy = (gy / H)[:, None]
    lin = yy.clamp(0, 1).expand(B, 1, 1, h, 1)
    hard = ((yy - hz) * H / 1.3 + 0.5).clamp(0, 1)
    mix = torch.where(hz < 0, lin, hard)
    bg = top * (1 - mix) + bot * mix
    shade = (1 - 0.16 * (dx * 0.5 + dy)).clamp(0.7, 1.15)[:, None]
    fg = (col * shade).clamp(0, 255)
    out = bg * (1 - alpha) + fg * alpha
    return out / 127.5 - 1


# ------------------------------------------------------------------ models
Z, SHIFT, CTX = 12, 3.0, 24  # latent channels, flow shift, text tokens kept in training


def make_vae():
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=16,
        z_dim=Z,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
        latents_mean=[0.0] * Z,
        latents_std=[1.0] * Z,
    )


def zero_branches(vae):
    """start every residual branch at zero: colours pass through the parameter-free shortcuts from the first step"""
    with torch.no_grad():
        for m in vae.modules():
            kind = type(m).__name__
            last = {"WanResidualBlock": lambda: m.conv2, "WanAttentionBlock": lambda: m.proj}.get(kind)
            layer = (
                last()
                if last
                else (
                    m.resample[1] if kind == "WanResample" and hasattr(m, "resample") and len(m.resample) > 1 else None
                )
            )
            if layer is not None:
                layer.weight.zero_()
                layer.bias.zero_()


def make_dit(d=128, heads=4, layers=6):
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=d // heads,
        in_channels=Z,
        out_channels=Z,
        text_dim=64,
        freq_dim=128,
        ffn_dim=4 * d,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )


def make_text_encoder(n, d=64):
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=n,
            d_model=d,
            d_kv=d // 4,
            d_ff=2 * d,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
            tie_word_embeddings=False,
        )
    )


def make_tokenizer():
    """T5 (Unigram) tokenizer whose pieces are the grammar's words; unknown words fall apart into letters"""
    from transformers import T5TokenizerFast

    words = all_words()
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [("\u2581" + w, -4.0) for w in words]
    vocab += [("\u2581" + w[0].upper() + w[1:], -4.0) for w in words if w != "a"] + [
        ("\u2581A", -4.0),
        ("\u2581", -8.0),
    ]
    have = {p for p, _ in vocab}
    vocab += [
        (c, -9.0) for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-" if c not in have
    ]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=512)


def tie_capitals(tok, emb):
    """a capitalised word gets exactly its lower-case embedding"""
    voc = tok.get_vocab()
    with torch.no_grad():
        for piece, i in voc.items():
            if piece.startswith("\u2581") and len(piece) > 1 and piece[1].isupper():
                emb[i] = emb[voc[piece.lower()]]


def pad_bias_processor(device):
    """The pipeline pads text to 512 zero vectors. One zero key weighted log(512 - CTX) is mathematically the same and far cheaper."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    bias = torch.zeros(1, 1, 1, CTX + 1, device=device)
    bias[..., -1] = math.log(512 - CTX)

    class PadBias(WanAttnProcessor):
        def __call__(self, attn, h, enc=None, mask=None, rope=None):
            return super().__call__(attn, h, enc, bias, rope)

    return PadBias()


# ------------------------------------------------------------------ optimiser and parallel helpers
class MuonAdam:
    """Muon (orthogonalised momentum at AdamW's update size) for matrices, Adam for the rest; same-shape matrices are batched
    and shared out over the processes."""

    def __init__(self, muon, adam, lr_muon, lr_adam, betas=(0.9, 0.97), mom=0.95, wd=0.02):
        self.adam = torch.optim.Adam(adam, lr=lr_adam, betas=betas)
        self.lm, self.la, self.mom, self.wd, self.groups = lr_muon, lr_adam, mom, wd, {}
        for p in muon:
            a, b = p.shape[0], p[0].numel()
            self.groups.setdefault((min(a, b), max(a, b)), []).append(p)
        self.buf = {
            k: [torch.zeros(p.shape[0], p[0].numel(), device=p.device) for p in v] for k, v in self.groups.items()
        }

    @torch.no_grad()
    def step(self, scale, rank=0, world=1):
        for q in self.adam.param_groups:
            q["lr"] = self.la * scale
        self.adam.step()
        params, delta, i = [], [], 0
        for k, ps in self.groups.items():
            mats, mine = [], []
            for p, b in zip(ps, self.buf[k]):
                g = p.grad.view(b.shape)
                b.lerp_(g, 1 - self.mom)
                mine.append(i % world == rank)
                i += 1
                if mine[-1]:
                    u = g.lerp(b, self.mom)
                    mats.append(u if u.shape[0] <= u.shape[1] else u.t())
            if mats:
                X = torch.stack(mats)
                X = X / (X.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
                for _ in range(5):  # Newton-Schulz: X -> nearest orthogonal matrix
                    A = X @ X.transpose(1, 2)
                    X = 3.4445 * X + (-4.7750 * A + 2.0315 * (A @ A)) @ X
                X = X * (0.2 * math.sqrt(k[1]) * self.lm * scale)
            j = 0
            for p, b, m in zip(ps, self.buf[k], mine):
                if m:
                    u = X[j] if b.shape[0] <= b.shape[1] else X[j].t()
                    j += 1
                else:
                    u = torch.zeros_like(b)
                params.append(p)
                delta.append(u.reshape(-1))
        flat = torch.cat(delta)
        if world > 1:
            dist.all_reduce(flat)
        o = 0
        for p in params:
            p.mul_(1 - self.wd * self.lm * scale)
            p.sub_(flat[o : o + p.numel()].view_as(p))
            o += p.numel()


def average(tensors, world):
    if world == 1:
        return
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    flat /= world
    o = 0
    for t in tensors:
        t.copy_(flat[o : o + t.numel()].view_as(t))
        o += t.numel()


def save(obj, path):
    torch.save(obj, path + ".tmp")
    os.replace(path + ".tmp", path)


# ------------------------------------------------------------------ stage 1 and 4: VAE
def edge_weight(x):
    B, C, T, h, w = x.shape
    y = x.transpose(1, 2).reshape(B * T, C, h, w)
    g = torch.zeros(B * T, 1, h, w, device=x.device)
    g[..., 1:] += (y[..., 1:] - y[..., :-1]).abs().sum(1, keepdim=True)
    g[:, :, 1:] += (y[:, :, 1:] - y[:, :, :-1]).abs().sum(1, keepdim=True)
    return (1 + 4 * F.max_pool2d(g, 5, 1, 2).clamp(0, 1)).view(B, T, 1, h, w).transpose(1, 2)


def crops(rng, n, size, frames):
    ps, ox, oy = [], [], []
    for _ in range(n):
        p = sample_params(rng, sample_attrs(rng))
        s = rng.randint(0, FRAMES - frames)
        q = {k: (v[s : s + frames] if k in ("x", "y", "r", "a") else v) for k, v in p.items()}
        f, j = rng.randrange(frames), size * 0.35
        cx, cy = (
            (q["x"][f] + rng.uniform(-j, j), q["y"][f] + rng.uniform(-j, j))
            if rng.random() < 0.85
            else (rng.uniform(0, W), rng.uniform(0, H))
        )
        ps.append(q)
        ox.append(round(cx - size / 2))
        oy.append(round(cy - size / 2))
    return render(ps, size, size, ox, oy)


def decode_train(vae, z):
    """AutoencoderKLWan._decode, chunk by chunk with its causal caches, but without the final clamp (it would stop gradients)"""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    h = vae.post_quant_conv(z)
    vae.clear_cache()
    outs = []
    for i in range(h.shape[2]):
        vae._conv_idx = [0]
        outs.append(
            vae.decoder(
                h[:, :, i : i + 1],
                feat_cache=vae._feat_map,
                feat_idx=vae._conv_idx,
                **({"first_chunk": True} if i == 0 else {}),
            )
        )
    vae.clear_cache()
    return unpatchify(torch.cat(outs, 2), patch_size=2)


def vae_optimiser(vae, params, lr_muon):
    ids = {id(p) for p in params}
    muon = [
        p
        for n, p in vae.named_parameters()
        if id(p) in ids
        and p.dim() >= 4
        and p[0].numel() > 1
        and not any(k in n for k in ("encoder.conv_in", "conv_out", "quant"))
    ]
    mids = {id(p) for p in muon}
    return MuonAdam(muon, [p for p in params if id(p) not in mids], lr_muon, 3e-3)


def train_vae(a, rank, world):
    dev = a.device
    torch.manual_seed(0)
    vae = make_vae().to(dev).train()
    zero_branches(vae)
    torch.manual_seed(7 + rank)
    rng = random.Random(100 + rank)
    params = list(vae.parameters())
    # two cycles, as trained: (steps, crop, frames, batch); learning rate decays to zero inside each cycle
    cycles = [(1.0, 0.55, [(210, 32, 5, 8), (290, 48, 9, 4)]), (0.8, 0.8, [(510, 48, 9, 4)])]
    t0 = time.time()
    for peak, tail, phases in cycles:
        opt = vae_optimiser(vae, params, 6e-3)
        total = int(sum(p[0] for p in phases) * a.scale)
        s = 0
        for steps, size, frames, bs in phases:
            for _ in range(int(steps * a.scale)):
                sc = peak * min(1, (s + 1) / 10) * min(1, (1 - s / total) / tail + 0.01)
                x = crops(rng, bs * a.batch, size, frames).to(dev)
                m, lv = vae._encode(x).chunk(2, 1)
                # fixed posterior width (0.12) instead of a free KL term: no fight over the latent scale early on
                kl = 0.5 * (m * m).mean() + 0.5 * (lv + 4.24).pow(2).mean()
                e = decode_train(vae, m + 0.12 * torch.randn_like(m)) - x
                w = edge_weight(x)
                loss = (w * e.abs()).mean() + (w * e * e).mean() + 2e-4 * kl
                vae.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(params, 1.0)
                opt.step(sc)
                s += 1
                if s % 8 == 0:
                    average([p.data for p in params], world)
                if rank == 0 and s % 50 == 0:
                    print(
                        f"vae {s}/{total} {time.time() - t0:.0f}s psnr {-10 * math.log10(e.detach().clamp(-2, 2).pow(2).mean().item() / 4):.2f}",
                        flush=True,
                    )
        average([p.data for p in params], world)
    if rank == 0:
        save(vae.cpu().state_dict(), f"{a.work}/vae.pt")


def load_vae(a, name="vae.pt"):
    vae = make_vae()
    vae.load_state_dict(torch.load(f"{a.work}/{name}"))
    return vae


def make_latents(a, rank, world):
    vae = load_vae(a).to(a.device).eval()
    rng = random.Random(1000 + rank)
    lat, attrs = [], []
    with torch.inference_mode():
        for _ in range(0, a.clips // world, 10):
            at = [sample_attrs(rng) for _ in range(10)]
            lat.append(vae._encode(render([sample_params(rng, q) for q in at]).to(a.device)).chunk(2, 1)[0].cpu())
            attrs += at
    save({"lat": torch.cat(lat), "attrs": attrs}, f"{a.work}/lat{rank}.pt")


def train_decoder(a, rank, world):
    """encoder frozen: sharpens edges and makes the decoder tolerant of the DiT's errors without moving the latent space it has learnt"""
    dev = a.device
    vae = load_vae(a).to(dev).train()
    torch.manual_seed(17 + rank)
    rng = random.Random(300 + rank)
    params = list(vae.decoder.parameters()) + list(vae.post_quant_conv.parameters())
    opt = vae_optimiser(vae, params, 6e-3)
    total = int(a.decoder_steps * a.scale)
    for s in range(total):
        sc = 0.7 * min(1, (s + 1) / 10) * ((1 - s / total) + 0.01)
        if s % 4 == 3:
            x = render([sample_params(rng, sample_attrs(rng)) for _ in range(a.batch)]).to(dev)
        else:
            x = crops(rng, 4 * a.batch, 48, 9).to(dev)
        with torch.no_grad():
            m = vae._encode(x).chunk(2, 1)[0]
        noise = (0.08 + 0.32 * torch.rand(len(m), device=dev)).view(-1, 1, 1, 1, 1)
        e = decode_train(vae, m + noise * torch.randn_like(m)) - x
        w = edge_weight(x)
        vae.zero_grad()
        ((w * e.abs()).mean() + (w * e * e).mean()).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step(sc)
        if s % 8 == 7:
            average([p.data for p in params], world)
        if rank == 0 and s % 50 == 0:
            print(
                f"decoder {s}/{total} psnr {-10 * math.log10(e.detach().clamp(-2, 2).pow(2).mean().item() / 4):.2f}",
                flush=True,
            )
    average([p.data for p in params], world)
    if rank == 0:
        save(vae.cpu().state_dict(), f"{a.work}/vae_final.pt")


# ------------------------------------------------------------------ stage 3: text encoder + DiT, flow matching
def encode_text(te, tok, captions, dev):
    b = tok(captions, padding="max_length", max_length=CTX, truncation=True, return_tensors="pt").to(dev)
    e = te(b.input_ids, b.attention_mask).last_hidden_state * b.attention_mask[..., None]
    return F.pad(e, (0, 0, 0, 1))


def train_dit(a, rank, world):
    dev = a.device
    B = 16 * a.batch
    parts = [torch.load(f"{a.work}/lat{i}.pt") for i in range(world)]
    lat = torch.cat([p["lat"] for p in parts])
    attrs = sum([p["attrs"] for p in parts], [])
    mean, std = lat.mean((0, 2, 3, 4)), lat.std((0, 2, 3, 4))
    lat = (lat - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
    torch.manual_seed(0)
    tok = make_tokenizer()
    te = make_text_encoder(len(tok)).to(dev).train()
    dit = make_dit().to(dev).train()
    for b in dit.blocks:
        b.attn2.set_processor(pad_bias_processor(dev))
    named = [("dit." + n, p) for n, p in dit.named_parameters()] + [("te." + n, p) for n, p in te.named_parameters()]
    muon = [
        p
        for n, p in named
        if p.dim() == 2
        and any(k in n for k in ("blocks", "te.encoder.block", "time_proj", "linear_2"))
        and "relative" not in n
    ]
    ids = {id(p) for p in muon}
    ps = [p for _, p in named]
    opt = MuonAdam(muon, [p for p in ps if id(p) not in ids], 4e-3, 2e-3, betas=(0.9, 0.98))
    torch.manual_seed(50 + rank)
    rng = random.Random(60 + rank)
    f = torch.compile(dit, dynamic=False) if a.compile else dit
    ema = [p.detach().clone() for p in ps]
    total = int(a.dit_steps * a.scale)
    order = []
    t0 = time.time()
    avg = None
    for s in range(total):
        if len(order) < B:
            order = list(range(len(lat)))
            rng.shuffle(order)
        idx = [order.pop() for _ in range(B)]
        x0 = lat[idx].to(dev)
        caps = [caption(rng, attrs[i]) if rng.random() > 0.1 else rng.choice(NEGATIVES) for i in idx]
        u = (torch.randperm(B) + torch.rand(B)) / B
        sig = (SHIFT * u / (1 + (SHIFT - 1) * u)).to(dev)
        eps = torch.randn_like(x0)
        sv = sig.view(-1, 1, 1, 1, 1)
        v = f((1 - sv) * x0 + sv * eps, sig * 1000, encode_text(te, tok, caps, dev), return_dict=False)[0]
        loss = ((v - (eps - x0)) ** 2).mean()
        for p in ps:
            p.grad = None
        loss.backward()
        average([p.grad for p in ps], world)
        torch.nn.utils.clip_grad_norm_(ps, 1.0)
        opt.step(min(1, (s + 1) / 40) * min(1, (1 - s / total) / 0.6 + 0.01), rank, world)
        with torch.no_grad():
            torch._foreach_lerp_(ema, ps, 1 - min(0.996, (1 + s) / (10 + s)))
        avg = loss.item() if avg is None else 0.98 * avg + 0.02 * loss.item()
        if rank == 0 and (s % 50 == 0 or s == total - 1):
            print(f"dit {s}/{total} {time.time() - t0:.0f}s loss {avg:.4f}", flush=True)
        if rank == 0 and (s % 250 == 249 or s == total - 1):
            sd = dict(zip([n for n, _ in named], [p.cpu() for p in ema]))
            save(
                {
                    "dit": {n[4:]: p for n, p in sd.items() if n.startswith("dit.")},
                    "te": {n[3:]: p for n, p in sd.items() if n.startswith("te.")},
                    "mean": mean,
                    "std": std,
                    "step": s + 1,
                },
                f"{a.work}/dit.pt",
            )


# ------------------------------------------------------------------ stage 5: save as a WanPipeline
def export(a):
    from diffusers import UniPCMultistepScheduler, WanPipeline

    c = torch.load(f"{a.work}/dit.pt")
    vae = load_vae(a, "vae_final.pt" if os.path.exists(f"{a.work}/vae_final.pt") else "vae.pt")
    vae.register_to_config(
        latents_mean=[round(float(x), 5) for x in c["mean"]], latents_std=[round(float(x), 5) for x in c["std"]]
    )
    tok = make_tokenizer()
    te = make_text_encoder(len(tok))
    dit = make_dit()
    te.load_state_dict(c["te"], strict=False)
    dit.load_state_dict(c["dit"])
    tie_capitals(tok, te.get_input_embeddings().weight)
    sch = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=SHIFT
    )
    pipe = WanPipeline(
        tokenizer=tok, text_encoder=te.eval(), vae=vae.half().eval(), scheduler=sch, transformer=dit.half().eval()
    )
    out = f"{a.out}/model"
    shutil.rmtree(out, ignore_errors=True)
    pipe.save_pretrained(out)
    path = f"{out}/model_index.json"
    index = json.load(open(path))
    index["tokenizer"] = ["transformers", "T5TokenizerFast"]
    json.dump(index, open(path, "w"), indent=2)


# ------------------------------------------------------------------ stage 6: automatic judge
_TEMPLATES = {}


def _templates():
    if not _TEMPLATES:
        for k, s in enumerate(SHAPE_L):
            turns = {"circle": 1, "square": 9, "triangle": 12, "star": 8}[s]
            for i in range(turns):
                p = dict(
                    shape=k,
                    x=[24],
                    y=[24],
                    r=[12.0],
                    a=[i * math.pi / 18],
                    col=[255] * 3,
                    top=[0] * 3,
                    bot=[0] * 3,
                    hz=-1.0,
                )
                _TEMPLATES.setdefault(s, []).append((_render([p], 48, 48)[0, 1, 0] > -0.2).numpy())
    return _TEMPLATES


def classify(v):
    """v: (T, H, W, 3), 0..255 -> the attributes seen in the pixels; knows nothing about the prompt"""
    T, h, w, _ = v.shape
    row = np.median(v, axis=(0, 2))  # background: median over time and columns
    top, bot = row[1:5].mean(0), row[-5:-1].mean(0)
    d = {b: np.abs(top - np.array(t)).mean() + np.abs(bot - np.array(o)).mean() for b, (t, o, _) in BACKGROUNDS.items()}
    out = {"background": min(d, key=d.get), "colour": None, "motion": None, "shape": None}
    dis = np.sqrt(((v - row[None, :, None]) ** 2).sum(-1))
    peak = np.percentile(dis, 99.5)
    mask = dis > max(50.0, 0.45 * peak)
    A = mask.reshape(T, -1).sum(1).astype(float)
    if (A < 12).sum() > T // 3 or A.mean() > 0.6 * h * w:
        return out  # no object
    col = np.median(v[mask & (dis > 0.8 * peak)], axis=0)
    cd = {c: np.linalg.norm(col - np.array(q)) for c, q in COLOURS.items()}
    out["colour"] = min(cd, key=cd.get)
    yy, xx = np.mgrid[:h, :w]
    cx = np.array([(xx * m).sum() / max(1, m.sum()) for m in mask])
    cy = np.array([(yy * m).sum() / max(1, m.sum()) for m in mask])
    dx, dy, yr = cx[-3:].mean() - cx[:3].mean(), cy[-3:].mean() - cy[:3].mean(), cy.max() - cy.min()
    grow = math.sqrt((A[-3:].mean() + 1) / (A[:3].mean() + 1))
    dv = np.diff(np.convolve(cy, np.ones(3) / 3, "valid"))
    turns = ((dv[:-1] * dv[1:] < 0) & (np.abs(dv[:-1]) + np.abs(dv[1:]) > 0.3)).sum()
    if grow > 1.5 or grow < 1 / 1.5:
        out["motion"] = "grow" if grow > 1 else "shrink"
    elif abs(dx) > 14 and abs(dx) > abs(dy):
        out["motion"] = "right" if dx > 0 else "left"
    elif abs(dy) > 11 and yr < abs(dy) * 1.6:
        out["motion"] = "down" if dy > 0 else "up"
    elif yr > 7 and turns >= 1:
        out["motion"] = "bounce"
    else:
        out["motion"] = "spin/still"  # the judge does not tell these two apart
    best = {}
    for s, ts in _templates().items():
        sc = []
        for f in (2, T // 2, T - 3):
            if A[f] < 30:
                continue
            hit = 0
            for t in ts:
                n = max(4, round(48 * math.sqrt(A[f] / t.sum())))
                tt = (
                    F.interpolate(
                        torch.tensor(t).float()[None, None], size=(n, n), mode="bilinear", align_corners=False
                    )[0, 0].numpy()
                    > 0.5
                )
                ty, tx = np.nonzero(tt)
                q = np.zeros((h, w), bool)
                ya, xa = ty + round(cy[f] - ty.mean()), tx + round(cx[f] - tx.mean())
                ok = (ya >= 0) & (ya < h) & (xa >= 0) & (xa < w)
                q[ya[ok], xa[ok]] = True
                hit = max(hit, (q & mask[f]).sum() / max(1, (q | mask[f]).sum()))
            sc.append(hit)
        best[s] = np.mean(sc) if sc else 0
    out["shape"] = max(best, key=best.get)
    return out


def score(attrs, seen):
    s, c, b, m = attrs
    mo = seen["motion"]
    return dict(
        shape=seen["shape"] == s,
        colour=seen["colour"] == c,
        background=seen["background"] == b,
        motion=mo == m or (mo == "spin/still" and m in ("spin", "still")),
    )


def evaluate(a):
    from diffusers import WanPipeline
    from PIL import Image, ImageDraw

    torch.set_num_threads(os.cpu_count() or 1)
    pipe = WanPipeline.from_pretrained(f"{a.out}/model", torch_dtype=torch.float32).to(a.device)
    pipe.set_progress_bar_config(disable=True)
    run = lambda cap, seed: pipe(
        prompt=cap,
        height=H,
        width=W,
        num_frames=FRAMES,
        num_inference_steps=a.infer_steps,
        guidance_scale=a.guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).frames[0]
    rng = random.Random(77)
    total, rows, full, secs = {}, [], 0, []
    for i in range(a.eval_clips):
        at = sample_attrs(rng, True)
        cap = caption(rng, at)
        t = time.time()
        v = run(cap, i) * 255
        secs.append(time.time() - t)
        r = score(at, classify(v.astype(np.float64)))
        full += all(r.values())
        for k in r:
            total[k] = total.get(k, 0) + r[k]
        print("ok " if all(r.values()) else "bad", cap, [k for k in r if not r[k]], flush=True)
        if i < 16:
            rows.append((cap, v[[0, 4, 8, 12, 16]].astype(np.uint8)))
    same = bool((run(cap, 3) == run(cap, 3)).all())
    print(
        json.dumps(
            {
                **{k: f"{q}/{a.eval_clips}" for k, q in total.items()},
                "all four": f"{full}/{a.eval_clips}",
                "same seed, same bits": same,
                "median seconds a clip": round(float(np.median(secs)), 2),
            }
        )
    )
    hh = H + 12
    im = Image.new("RGB", (10 * W, hh * ((len(rows) + 1) // 2)), "white")
    d = ImageDraw.Draw(im)
    for i, (cap, fr) in enumerate(rows):
        x, y = (i % 2) * 5 * W, (i // 2) * hh
        d.text((x + 2, y), cap[:78], fill="black")
        im.paste(Image.fromarray(np.concatenate(list(fr), 1)), (x, y + 12))
    im.save(f"{a.out}/contact_sheet.png")


# ------------------------------------------------------------------ command line
TRAIN = {"vae": train_vae, "latents": make_latents, "dit": train_dit, "decoder": train_decoder}


def worker(rank, a, stage):
    torch.set_num_threads(a.threads)
    if a.procs > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{os.path.abspath(a.work)}/rendezvous_{stage}", rank=rank, world_size=a.procs
        )
    TRAIN[stage](a, rank, a.procs)
    if a.procs > 1:
        dist.barrier()
        dist.destroy_process_group()


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", default="demo_model", help="gets model/ and contact_sheet.png")
    p.add_argument("--work", default=None, help="checkpoints and latents (default: OUT/work)")
    p.add_argument("--stages", default="vae,latents,dit,decoder,export,eval")
    p.add_argument("--device", default="cpu")
    p.add_argument(
        "--procs",
        type=int,
        default=2,
        help="data-parallel processes; on a CPU, 2 x 1 thread beats 1 x 2 threads nearly twofold",
    )
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--batch", type=int, default=1, help="multiplies every batch size")
    p.add_argument("--scale", type=float, default=1.0, help="multiplies every number of steps")
    p.add_argument("--clips", type=int, default=4000)
    p.add_argument("--dit-steps", type=int, default=2775)
    p.add_argument("--decoder-steps", type=int, default=344)
    p.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="torch.compile the transformer (about 1.5x on a CPU; needs a C++ compiler)",
    )
    p.add_argument("--infer-steps", type=int, default=16)
    p.add_argument("--guidance", type=float, default=4.0)
    p.add_argument("--eval-clips", type=int, default=48)
    a = p.parse_args()
    a.work = a.work or f"{a.out}/work"
    os.makedirs(a.work, exist_ok=True)
    for stage in a.stages.split(","):
        t = time.time()
        if stage in TRAIN:
            for f in os.listdir(a.work):
                if f.startswith("rendezvous_"):
                    os.remove(f"{a.work}/{f}")
            if a.procs > 1:
                torch.multiprocessing.spawn(worker, (a, stage), nprocs=a.procs)
            else:
                worker(0, a, stage)
        else:
            {"export": export, "eval": evaluate}[stage](a)
        print(f"== {stage}: {time.time() - t:.0f} s", flush=True)


if __name__ == "__main__":
    main()
