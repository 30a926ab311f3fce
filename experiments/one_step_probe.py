"""What is the critic's verdict on a one-step estimate worth? (Table 6)

The critic never sees a finished edit in training: it sees the one-step estimate at a noise level
t < tau. For finished edits of base, SFT and USO, this measures its margin on the edit itself, the
bound, and on one-step estimates from the noised edit, for each tau. `tables.table_6` correlates
them with the oracle's EA.

Axis letters: N samples.
"""

import torch
from tqdm import tqdm

from bench import trigger_rate
from critic import Critic, clean_estimate, decode_frames
from experiments.critic_probe import batches
from experiments.runs import BASE, TAUS, Study
from model import add_noise, load_model, shifted
from tiny import world

MODELS = (BASE, "sft", "uso")


@torch.no_grad()
def one_step_margins(study: Study) -> dict[str, list]:
    """Lists (models, N) by name: the oracle's "EA" of N finished RAVE edits of each of MODELS, the
    margin on them ("clean") and, for each tau, on a one-step estimate at one t < tau, drawn as in
    training."""
    triplets = [world.make_triplet(i, "rave", "test") for i in range(study.n)]
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(study.n, generator=generator)
    found = {"EA": [], "clean": [], **{str(tau): [] for tau in TAUS}}
    for run in MODELS:
        model = load_model(study.model_folder(run, study.seeds[0]))
        row = {name: [] for name in found}
        for rows in tqdm(batches(study.n), desc=f"one-step estimates, {run}"):
            margins = margins_of_batch(model, triplets[rows], u[rows], generator, seed=rows.start)
            for name, values in margins.items():
                row[name] += values
        for name, values in row.items():
            found[name].append(values)
    return found


def margins_of_batch(model, triplets: list, u: torch.Tensor, generator: torch.Generator,
                     seed: int) -> dict[str, list[float]]:
    """The above for a few triplets. u: (B,) uniform; the same u gives a t for each tau."""
    critic = Critic(model)
    source = torch.stack([triplet.source for triplet in triplets])           # (B, F, 3, H, W)
    instructions = [triplet.instruction for triplet in triplets]
    edit = model.sample(source, instructions, seed=seed)                     # (B, F, 3, H, W)
    thoughts = critic.thoughts(source, instructions)

    x0, z = model.encode_video(edit), model.encode_video(source)             # (B, C, f, h, w)
    bridged = model.bridge(model.encode_vlm(source, instructions))
    c = model.context(z, bridged, model.encode_text(instructions))
    noise = torch.randn(x0.shape, generator=generator)

    found = {"EA": [world.judge(triplet, clip)["EA"] for triplet, clip in zip(triplets, edit)],
             "clean": critic.margin(source, edit, instructions, thoughts).tolist()}
    for tau in TAUS:
        t = shifted(u * trigger_rate(tau), model.preset.shift).clamp_min(1e-3)        # below tau
        x_t = add_noise(x0, noise, t)
        estimate = clean_estimate(x_t, model.velocity(x_t, t, c, z), t)
        frames = decode_frames(model, estimate, model.preset.decode)         # (B, K, 3, H, W)
        found[str(tau)] = critic.margin(source, frames, instructions, thoughts).tolist()
    return found
