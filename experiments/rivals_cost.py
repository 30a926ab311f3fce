"""What does a step of the other ways to learn from the same reward cost, in USO steps?

    python -m experiments.rivals_cost                    # of the tiny preset

A reward backpropagated through the last 1 (ReFL) or 5 (VideoX-Fun) of a rollout's 30 Euler steps,
and a group-relative policy gradient (Flow-GRPO, groups of 24 in rollouts of 10 steps). Every sample
pays: there is no gate. Flow-GRPO is measured on groups of 2 and scaled: rollouts are independent,
so 24 cost 12 times as much.
"""

import json
from functools import partial
from pathlib import Path
from statistics import median

import torch

import bench
from common.files import Parser, atomic_write, check_writable, markdown, positive, run_script
from critic import Critic, reason_loss
from experiments import rivals
from model import load_model, shifted

ROLLOUT, GROUP, MEASURED_GROUP, POLICY_STEPS = 30, 24, 2, 10


def rollout_loss(model, critic, batch, last: int, steps: int = ROLLOUT) -> torch.Tensor:
    """Eq. 4 on the end of a rollout from noise; its gradient through the `last` Euler steps."""
    ts = shifted(torch.linspace(1, 0, steps + 1), model.preset.shift).tolist()
    x = batch.noise
    for k, (t, t_next) in enumerate(zip(ts[:-1], ts[1:])):
        with torch.set_grad_enabled(k >= steps - last):
            c = model.context(batch.source, batch.bridged, batch.text)
            v = model.velocity(x, x.new_full((len(x),), t), c, batch.source)
            x = x + (t_next - t) * v
    margin = critic.margin(batch.frames, critic.decode(x), batch.instructions, batch.thoughts)
    return reason_loss(margin, batch.baseline).mean()


def policy_loss(model, critic, batch, group: int, steps: int = POLICY_STEPS) -> torch.Tensor:
    """The policy gradient of groups of `group` rollouts of `steps` steps."""
    c = model.context(batch.source, batch.bridged, batch.text)

    def reward(x):
        shown = [row for row in batch.instructions for _ in range(group)]
        thoughts = [row for row in batch.thoughts for _ in range(group)]
        frames = batch.frames.repeat_interleave(group, 0)
        return critic.margin(frames, critic.decode(x), shown, thoughts)
    loss, _ = rivals.group_loss(model, c, batch.source, reward, seed=0, group=group, steps=steps)
    return loss.mean()


def update(model, optimizer, loss_of, mark=lambda part: None) -> None:
    """A training step on loss_of()."""
    optimizer.zero_grad(set_to_none=True)
    with model.precision():
        loss_of().backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    mark("step")


def measure(model, batch_size: int, repeats: int) -> dict:
    """{way: {"ms", "lowest", "highest", "peak_mib", "in_uso_steps"}}, and USO's own "ms"."""
    optimizer = torch.optim.AdamW(model.freeze(), lr=0.)
    critic, batch = Critic(model), bench.random_batch(model, batch_size)
    bench.set_reflections(batch, critic)
    uso = bench.measure(model, batch_size, repeats, [bench.WAYS[0]], flops=False)
    uso_ms = uso["steps"][uso["own"]]["tau"][bench.TAU]["ms"]
    losses = {"reward through the last step of 30": (partial(rollout_loss, last=1), 1),
              "reward through the last 5 steps of 30": (partial(rollout_loss, last=5), 1),
              f"policy gradient, groups of {GROUP} (scaled)":
                  (partial(policy_loss, group=MEASURED_GROUP), GROUP / MEASURED_GROUP)}
    found = {"USO": {"ms": uso_ms}}
    for name, (loss, scale) in losses.items():
        step = partial(update, model, optimizer, partial(loss, model, critic, batch))
        mib = bench.peak_memory(step, model.device)      # and warms up
        times = [scale * sum(bench.timed(step, model.device).values()) for _ in range(repeats)]
        found[name] = {"ms": median(times), "lowest": min(times), "highest": max(times),
                       "peak_mib": mib, "in_uso_steps": median(times) / uso_ms}
    return found


def main(argv=None) -> None:
    parser = Parser(description="Measure the other ways to use the same reward.")
    parser.add_argument("--batch", type=positive, default=8, help="samples a step")
    parser.add_argument("--repeats", type=positive, default=3, help="how often each step is timed")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of rivals.json")
    args = parser.parse_args(argv)
    check_writable(args.out / "rivals.json")
    found = measure(load_model(None), args.batch, args.repeats)
    lines = [["a step of", "ms", "in USO steps"]]
    for name, row in found.items():
        lines.append([name, f"{row['ms']:.0f}", f"{row.get('in_uso_steps', 1):.1f}"])
    print(markdown(lines))
    atomic_write(args.out / "rivals.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main, "stopped; nothing was written")
