"""What is the critic's verdict on a one-step estimate worth? (Table 6)

The critic never sees a finished edit in training: it sees the one-step estimate at a noise level
t < tau. For finished edits of base, SFT and USO, this measures its margin on the edit itself, the
bound, and on one-step estimates, for each tau. `tables.table_6` correlates them with the oracle's
EA of the finished edit.

What is noised matters. A generator that made an edit finds it again in the edit's own noise;
`figures.figure_one_step` also noises what shows nothing of it: the source, and the target of
another sample.

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
NOISED = ("the edit", "the source", "another target")


@torch.no_grad()
def one_step_margins(study: Study) -> dict[str, list]:
    """Lists (models, N) by name: the oracle's "EA" of N finished RAVE edits of each of MODELS, the
    margin on them ("clean") and, for each of NOISED and each tau ("the edit 0.5"), on a one-step
    estimate at one t < tau, drawn as in training."""
    triplets = [world.make_triplet(i, "rave", "test") for i in range(study.n)]
    others = [world.make_triplet(study.n + i, "rave", "test") for i in range(study.n)]
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(study.n, generator=generator)
    found = {name: [] for name in ("EA", "clean", *(f"{x} {tau}" for x in NOISED for tau in TAUS))}
    for run in MODELS:
        model = load_model(study.model_folder(run, study.seeds[0]))
        row = {name: [] for name in found}
        for rows in tqdm(batches(study.n), desc=f"one-step estimates, {run}"):
            margins = margins_of_batch(model, triplets[rows], others[rows], u[rows], generator,
                                       seed=rows.start)
            for name, values in margins.items():
                row[name] += values
        for name, values in row.items():
            found[name].append(values)
    return found


def margins_of_batch(model, triplets: list, others: list, u: torch.Tensor,
                     generator: torch.Generator, seed: int) -> dict[str, list[float]]:
    """The above for a few triplets. u: (B,) uniform; the same u gives a t for each tau."""
    critic = Critic(model)
    source = torch.stack([triplet.source for triplet in triplets])           # (B, F, 3, H, W)
    another = torch.stack([triplet.target for triplet in others])
    instructions = [triplet.instruction for triplet in triplets]
    edit = model.sample(source, instructions, seed=seed)                     # (B, F, 3, H, W)
    thoughts = critic.thoughts(source, instructions)

    z = model.encode_video(source)                                           # (B, C, f, h, w)
    clean = dict(zip(NOISED, (model.encode_video(edit), z, model.encode_video(another))))
    bridged = model.bridge(model.encode_vlm(source, instructions))
    c = model.context(z, bridged, model.encode_text(instructions))
    noise = torch.randn(z.shape, generator=generator)

    found = {"EA": [world.judge(triplet, clip)["EA"] for triplet, clip in zip(triplets, edit)],
             "clean": critic.margin(source, edit, instructions, thoughts).tolist()}
    for tau in TAUS:
        t = shifted(u * trigger_rate(tau), model.preset.shift).clamp_min(1e-3)        # below tau
        for name, x0 in clean.items():
            x_t = add_noise(x0, noise, t)
            estimate = clean_estimate(x_t, model.velocity(x_t, t, c, z), t)
            frames = decode_frames(model, estimate, model.preset.decode)     # (B, K, 3, H, W)
            margin = critic.margin(source, frames, instructions, thoughts)   # (B,)
            found[f"{name} {tau}"] = margin.tolist()
    return found
