"""The model against independent sums: noise levels, connector, VAE, sampling, the real size."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

from model import UnifiedModel, add_noise, rollout, sample_timesteps, velocity_target
from presets import PRESETS

TINY = PRESETS["tiny"]
SHORT, LONG = "wait", "a hard frost came overnight and the whole place is different now"


# ------------------------------------------------------------------------------------ flow matching

def test_trigger_rates_of_table_6():
    n = 200_000
    t = sample_timesteps(n, generator=torch.Generator().manual_seed(1))
    for tau, rate in ((.1, .035), (.3, .125), (.5, .25), (.7, .437), (.9, .75)):
        p = tau / (3 - 2 * tau)
        assert p == pytest.approx(rate, abs=1e-3)        # what the paper measured
        assert (t < tau).float().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** .5)


def test_the_smallest_and_largest_draw(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, generator=None: torch.tensor([0., 1 - 2 ** -24]))
    t = sample_timesteps(2)
    assert t[0] == 1 and 0 < t[1] < 1e-6


def test_eq_2_by_hand():
    x0, noise = torch.full((3, 1, 1, 1, 2), 2.), torch.full((3, 1, 1, 1, 2), -6.)
    x_t = add_noise(x0, noise, torch.tensor([0., .25, 1.]))
    assert x_t[:, 0, 0, 0].tolist() == [[2, 2], [0, 0], [-6, -6]]
    assert velocity_target(x0, noise).unique().tolist() == [-8]


# ------------------------------------------------------------------------------------ the connector

def test_context_order_and_padding(tiny, latents):
    width = TINY.dit["text_dim"]
    bridged, text = torch.randn(2, 16, width), [torch.randn(5, width), torch.randn(9, width)]
    out = tiny.context(latents, bridged, text)
    edge = tiny.boundary
    for row, v, a, s in zip(out, tiny.visual_context_adapter(latents), bridged, text):
        want = torch.cat([edge["img_st"][None], v, edge["img_ed"][None],
                          edge["ipl_st"][None], a, edge["ipl_ed"][None],
                          edge["prp_st"][None], s, edge["prp_ed"][None]])
        n = len(want)
        assert torch.equal(row[:n], want) and row[n:].eq(0).all() and n < len(row)
    assert out.shape == (2, TINY.context_length, width)


def test_visual_tokens_against_a_loop(tiny, latents):
    """A token is a patch of one latent frame, in the order f, h, w, and knows its place."""
    def norm(x):
        return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    vca, k = tiny.visual_context_adapter, TINY.visual_kernel
    weight, bias = vca.patch_embedding.weight.flatten(1), vca.patch_embedding.bias
    _, f, h, w = TINY.latent_shape
    places = [(i, j, l) for i in range(f) for j in range(0, h, k) for l in range(0, w, k)]
    tokens = vca(latents[:1])[0]
    assert len(tokens) == len(places)
    for n, (i, j, l) in enumerate(places):
        patch = latents[0, :, i, j:j + k, l:l + k].flatten()
        x = norm(weight @ patch + bias) + vca.position[0, n]
        assert torch.allclose(tokens[n], norm(vca.projection(x)), atol=1e-4)


def test_what_is_too_long_raises(tiny, latents):
    width, limit = TINY.dit["text_dim"], TINY.context_length
    room = limit - 6 - tiny.visual_context_adapter(latents).shape[1] - 16
    assert room >= TINY.text_length                      # the longest instruction fits
    bridged = torch.zeros(1, 16, width)
    tiny.context(latents[:1], bridged, [torch.zeros(room, width)])      # exactly full
    with pytest.raises(ValueError, match=f"{limit + 1} tokens long, its limit is {limit}"):
        tiny.context(latents[:1], bridged, [torch.zeros(room + 1, width)])
    with pytest.raises(ValueError, match=f"the limit is {TINY.text_length}: shorten"):
        tiny.encode_text([SHORT, "wait " * 60])


# ---------------------------------------------------------------------------------------------- VAE

@pytest.fixture
def scaled(tiny):
    """`tiny`, whose VAE has another mean and deviation in each channel."""
    n, config = TINY.latent_shape[0], tiny.vae.config
    before = {"latents_mean": config.latents_mean, "latents_std": config.latents_std}
    tiny.vae.register_to_config(latents_mean=[.1 * k for k in range(n)],
                                latents_std=[.5 + .1 * k for k in range(n)])
    yield tiny
    tiny.vae.register_to_config(**before)


@torch.no_grad()
def test_latents_are_normalised(scaled, sources):
    raw = scaled.vae.encode(sources.transpose(1, 2)).latent_dist.mode()
    z = scaled.encode_video(sources)
    assert z.shape == (2, *TINY.latent_shape)
    for k in range(z.shape[1]):
        assert torch.allclose(z[:, k], (raw[:, k] - .1 * k) / (.5 + .1 * k), atol=1e-5)
    video, want = scaled.decode_video(z), scaled.vae.decode(raw).sample.transpose(1, 2)
    assert video.shape == sources.shape and torch.allclose(video, want, atol=1e-4)


def test_a_first_frame_is_decoded_as_by_the_library_in_a_third_of_the_work(tiny, latents):
    plain = AutoencoderKLWan(**TINY.vae).requires_grad_(False)
    plain.load_state_dict(tiny.vae.state_dict())
    found = []
    for vae in (plain, tiny.vae):
        for z in (latents, latents[:, :, :1]):
            z = z.clone().requires_grad_(True)
            with FlopCounterMode(display=False) as counter:
                video = vae.decode(z).sample
            gradient, = torch.autograd.grad(video.square().sum(), z)
            found.append((video, gradient, counter.get_total_flops()))
    for (want, gradient, flops), (video, mine, less) in zip(found[:2], found[2:]):
        torch.testing.assert_close(video, want, atol=1e-5, rtol=0)
        torch.testing.assert_close(mine, gradient, atol=1e-4, rtol=1e-4)
        assert less < flops
    assert found[3][2] < .4 * found[1][2]                               # the frame alone


# ----------------------------------------------------------------------------------------- sampling

def test_a_rollout_follows_the_flow_without_gradient():
    """Against the exact flow from noise to one clip mu: x_t = (1 - t) mu + t eps, v = eps - mu."""
    mu, eps = torch.full((3, 2, 1, 2, 2), 1.5, requires_grad=True), torch.randn(3, 2, 1, 2, 2)
    t = torch.tensor([.1, .3, .9]).view(-1, 1, 1, 1, 1)

    def velocity(x, t, c, source):
        return (x - mu) / t.view(-1, 1, 1, 1, 1)
    x = rollout(SimpleNamespace(velocity=velocity), eps, t.flatten(), None, None)
    torch.testing.assert_close(x, (1 - t) * mu.detach() + t * eps)
    assert not x.requires_grad


def test_a_sample_depends_on_its_seed_and_not_on_the_batch(tiny, sources):
    words = [SHORT, LONG]
    both = tiny.sample(sources, words, steps=2, guidance=1., seed=5)
    assert both.shape == sources.shape and both.abs().max() <= 1
    for i in range(2):
        alone = tiny.sample(sources[i:i + 1], words[i:i + 1], steps=2, guidance=1., seed=5 + i)
        assert torch.allclose(alone[0], both[i], atol=1e-4)
    assert (tiny.sample(sources[:1], words[:1], steps=2, seed=6) - both[:1]).abs().max() > 1e-2


@pytest.mark.parametrize("g", [0., 3.])
def test_guidance_and_euler_by_hand(tiny, sources, g):
    """dx/dt = v, from t = 1 to 0 in unequal steps; v = cond + g (cond - uncond)."""
    source = sources[:1]
    with torch.no_grad():
        z = tiny.encode_video(source)
        h, s = tiny.encode_vlm(source, [SHORT]), tiny.encode_text([SHORT])
        h_empty, s_empty = tiny.unconditional()
        cond = tiny.context(z, tiny.bridge(h), s)
        uncond = tiny.context(z, tiny.bridge([h_empty]), [s_empty])
        x = torch.randn(1, *TINY.latent_shape, generator=torch.Generator().manual_seed(7))
        ts = [TINY.shift * u / (1 + (TINY.shift - 1) * u) for u in (1, 2 / 3, 1 / 3, 0)]
        for t, t_next in zip(ts, ts[1:]):
            level = torch.tensor([1000 * t])
            one, two = (tiny.transformer(torch.cat([x, z], 1), level, c).sample
                        for c in (cond, uncond))
            x = x - (t - t_next) * ((1 + g) * one - g * two)
        want = tiny.decode_video(x)
    got = tiny.sample(source, [SHORT], steps=3, guidance=g, seed=7)
    assert torch.allclose(got, want, atol=1e-4)


# ---------------------------------------------------------------------------------- parts and sizes


@pytest.fixture(scope="module")
def real():
    """The real size, without memory."""
    with torch.device("meta"):
        return UnifiedModel(PRESETS["wan1.3b"])


def test_the_released_weights_have_these_numbers_of_parameters(real):
    def count(part):
        return sum(p.numel() for p in real.get_submodule(part).parameters())
    assert count("ar_head") == 154_840_320
    assert count("adapter") == 1_902_141_440
    assert count("visual_context_adapter") == 6_690_304
    assert count("vlm.llm") == 8_030_261_248                            # Llama-3-8B
    assert count("vlm.vision_tower") == pytest.approx(428e6 - 15e6, rel=.01)    # without its head
    assert count("text_encoder") == pytest.approx(5.68e9, rel=.01)      # UMT5-XXL's encoder
    assert count("vae") == pytest.approx(126.9e6, rel=.01)
    assert count("transformer") == pytest.approx(1.42e9, rel=.02)
    assert len(real.transformer.state_dict()) == 825


def test_the_context_of_the_real_size(real):
    """1100 visual tokens, 1024 of the adapter and 6 edges leave 430 of the 2560 for the text."""
    with torch.device("meta"):
        z = torch.empty(1, *real.preset.latent_shape)
        bridged, text = torch.empty(1, 1024, 4096), torch.empty(431, 4096)
        assert z.shape == (1, 16, 5, 44, 80)
        assert real.context(z, bridged, [text[:430]]).shape == (1, 2560, 4096)
        with pytest.raises(ValueError, match="2561 tokens long, its limit is 2560: 1100 of them"):
            real.context(z, bridged, [text])
