"""Proximal policy optimisation of a cloned policy, with an asymmetric critic.

Source: Schulman et al. 2017 (arXiv:1707.06347), equation 7, with the generalised advantages of
arXiv:1506.02438. Departures, each for refining a cloned chunk policy:

- A chunk is one macro-step with one advantage; the ratio is taken a control step at a time over the
  executed steps, since one ratio over a whole chunk saturates the clip.
- The backbone is frozen, so each frame is encoded once, while collecting, and every epoch runs on
  those contexts.
- The critic sees privileged simulator state (Pinto et al. 2017, arXiv:1710.06542) or, as an option,
  the actor's context; it is warmed up alone before the actor moves.
- A KL penalty and monitor to the cloned reference; an epoch ends early at the target KL.
- Rewards are scaled by 1 - gamma, so that values lie in [0, 1] when every step succeeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from policies.reinforcement.advantages import discount_within, generalised_advantages
from policies.reinforcement.critic import Critic
from policies.rollout import Transition, rollout
from policies.run_folder import RunFolder
from vla.contract import ObservationBatch, RobotSpec, VecEnv
from vla.model.features import Features
from vla.model.heads.registry import require_likelihood
from vla.policy import VLAPolicy


@dataclass(frozen=True)
class PPOConfig:
    """Hyperparameters; sources in the module's docstring.

    Attributes:
        iterations: collect, then learn.
        episodes: episodes collected an iteration; 10 are noise, 200 are a gradient.
        warmup_iterations: iterations in which the critic learns alone.
        gamma: discount a control step.
        lam: of the generalised advantages.
        clip: range of the ratio.
        epochs: passes over what was collected.
        minibatch: macro-steps a gradient step.
        actor_learning_rate: of Adam; None for the head's own.
        std_learning_rate: of Adam for the exploration's log standard deviation.
        critic_learning_rate: of Adam.
        critic: what the critic sees: "privileged" simulator state, or the actor's "context".
        entropy: weight of the entropy bonus.
        reference_kl: weight of the penalty KL(policy || clone), at the policy's own exploration.
        target_kl: epochs stop once the policy has moved this far from the collecting one, in nats
            a control step.
        max_grad_norm: gradients are clipped to this norm.
        log_std_start: log standard deviation, before squashing, at which exploration starts.
        log_std_end: it is learned, and kept below a line from `log_std_start` to this.
        evaluate_every: iterations between greedy evaluations and checkpoints.
        seed: of everything random.
        first_seed: episodes collected begin here, away from those of evaluation.
    """

    iterations: int = 60
    episodes: int = 200
    warmup_iterations: int = 2
    gamma: float = 0.98
    lam: float = 0.95
    clip: float = 0.3
    epochs: int = 10
    minibatch: int = 1000
    actor_learning_rate: float | None = None
    std_learning_rate: float = 3e-3
    critic_learning_rate: float = 1e-3
    critic: Literal["privileged", "context"] = "privileged"
    entropy: float = 0.0
    reference_kl: float = 0.0
    target_kl: float = 0.05
    max_grad_norm: float = 0.5
    log_std_start: float = -1.2
    log_std_end: float = -2.2
    evaluate_every: int = 10
    seed: int = 0
    first_seed: int = 2_000_000


@dataclass
class Batch:
    """Macro-steps of one collection, [m, ...].

    Attributes:
        context: what the actor saw.
        view: what the critic saw.
        decision: what the head sampled, as its `likelihood` takes it.
        log_prob: of every control step when it was sampled.
        valid: control steps that were executed.
        advantage: unnormalised.
        returns: targets of the critic.
        value: of the critic when it was collected.
    """

    context: Features
    view: Tensor
    decision: Tensor
    log_prob: Tensor
    valid: Tensor
    advantage: Tensor
    returns: Tensor
    value: Tensor

    def select(self, rows: Tensor) -> Batch:
        """These rows."""
        columns = dict(vars(self))
        context = columns.pop("context").select(rows)
        return Batch(context, **{name: tensor[rows] for name, tensor in columns.items()})


class Collector:
    """A policy that samples and remembers what learning needs, one entry a macro-step."""

    def __init__(self, policy: VLAPolicy, critic: str, generator: torch.Generator):
        self.spec: RobotSpec = policy.spec
        self._policy = policy
        require_likelihood(policy.model.actor.head, "PPO")
        self._sees_context = critic == "context"
        self._generator = generator
        self._decided: tuple[Features, Tensor] | None = None
        self.contexts: list[Features] = []
        self.rows: list[dict[str, Tensor]] = []

    def reset(self, indices: Sequence[int]) -> None:
        """A new episode begins in these rows."""
        self._policy.reset(indices)

    def act(self, observation: ObservationBatch) -> Tensor:
        """A sampled chunk, float32 [n, horizon, action.dim]."""
        context = self._policy.observe(observation)
        decision = self._policy.actor.sample(context, self._generator)
        self._decided = context, decision
        return self._policy.decode(self._policy.actor.actions(decision))

    def record(self, transition: Transition) -> None:
        """Keep one macro-step; the rollout calls it."""
        assert self._decided is not None
        context, decision = self._decided
        step = transition.step
        ended = step.terminated | step.truncated
        view, next_view = transition.privileged, step.privileged
        if self._sees_context:
            following = self._policy.observe(step.observation, remember=False)
            view, next_view = _vector(context), _vector(following)
        self.contexts.append(context)
        self.rows.append(
            {
                "decision": decision,
                "view": view.clone(),
                "next_view": next_view.clone(),
                "rewards": step.rewards.clone(),
                "valid": step.valid.clone(),
                "terminated": step.terminated.clone(),
                "ended": ended,
                "playing": torch.from_numpy(transition.episodes >= 0),
            }
        )


def _vector(features: Features) -> Tensor:
    columns = (features.readout, features.points.flatten(1), features.localisation_std)
    return torch.cat([*columns, features.proprio], dim=1)


class PPO:
    """One refinement run: `run` trains to the end, from the last checkpoint if there is one.

    Args:
        policy: the cloned policy; its head is trained in place, its backbone is left as it is.
        env: where episodes are collected and evaluated.
        config: how to learn.
        folder: where checkpoints `step_<n>`, `best` and metrics go.
    """

    def __init__(self, policy: VLAPolicy, env: VecEnv, config: PPOConfig, folder: RunFolder):
        self.policy, self.env, self.config, self.folder = policy, env, config, folder
        model = policy.model.eval()
        torch.manual_seed(config.seed)
        self._generator = torch.Generator(policy.device).manual_seed(config.seed)
        self.reference = deepcopy(model.actor)
        head = require_likelihood(model.actor.head, "PPO")
        self._noise = head.log_std_parameters()
        self._reference_noise = require_likelihood(self.reference.head, "PPO").log_std_parameters()
        with torch.no_grad():
            for log_std in self._noise:
                log_std.fill_(config.log_std_start)
        size = len(env.privileged_names)
        dims = policy.model.dims.proprio + 12 + policy.model.backbone.width
        self.critic = Critic(size if config.critic == "privileged" else dims)
        self.critic.to(policy.device)
        self._actor = [*model.actor.parameters()]
        rate = config.actor_learning_rate
        means = [p for p in self._actor if all(p is not log_std for log_std in self._noise)]
        self._actor_optimizer = torch.optim.Adam(
            [
                {"params": means, "lr": head.learning_rate if rate is None else rate},
                {"params": self._noise, "lr": config.std_learning_rate},
            ],
            fused=True,
        )
        self._critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), lr=config.critic_learning_rate, fused=True
        )
        self.iteration, self.simulator_steps, self.best_success = 0, 0, -1.0

    def run(
        self,
        selection_seeds: Sequence[int],
        progress: Callable[[int, dict[str, float]], None] = lambda iteration, values: None,
        stop_at: float = 1.1,
    ) -> Path:
        """Train, and return the folder of the checkpoint with the highest greedy success.

        Args:
            selection_seeds: initial states that choose the checkpoint; not those of evaluation.
            progress: called with what was logged.
            stop_at: stop early once greedy success at the end reaches this.
        """
        if not self._resume():
            values = self._evaluate(selection_seeds)  # the clone itself: where everything starts
            self.folder.log(0, values)
            progress(0, values)
        while self.iteration < self.config.iterations and self.best_success < stop_at:
            started = time.perf_counter()
            batch, values = self.collect()
            collected = time.perf_counter()
            values |= self.learn(batch, train_actor=self.iteration >= self.config.warmup_iterations)
            self.iteration += 1
            values["time/collect_s"] = collected - started
            values["time/learn_s"] = time.perf_counter() - collected
            last = self.iteration == self.config.iterations
            if last or self.iteration % self.config.evaluate_every == 0:
                values |= self._evaluate(selection_seeds)
                self._save(f"step_{self.iteration:06d}", with_state=True)
            self.folder.log(self.iteration, values)
            self.folder.histogram(self.iteration, "advantage", batch.advantage)
            progress(self.iteration, values)
        return self.folder.path / "best"

    @torch.no_grad()
    def collect(self) -> tuple[Batch, dict[str, float]]:
        """Play an iteration's episodes and compute their advantages."""
        config = self.config
        done = self.iteration / config.iterations
        ceiling = config.log_std_start + done * (config.log_std_end - config.log_std_start)
        for log_std, reference in zip(self._noise, self._reference_noise, strict=True):
            log_std.clamp_(max=ceiling)
            reference.copy_(log_std)  # how far the means went, not the exploration that is set
        first = config.first_seed + (config.seed * 100_000 + self.iteration) * config.episodes
        collector = Collector(self.policy, config.critic, self._generator)
        seeds = range(first, first + config.episodes)
        episodes = rollout(self.env, collector, seeds, collector.record)
        self.simulator_steps += episodes.simulator_steps
        rows = {
            name: torch.stack([row[name] for row in collector.rows]).to(self.policy.device)
            for name in collector.rows[0]
        }
        if self.iteration == 0:
            self.critic.fit_input(rows["view"][rows["playing"]])
        rewards, discounts = discount_within(rows["rewards"], rows["valid"], config.gamma)
        values, next_values = self.critic(rows["view"]), self.critic(rows["next_view"])
        advantage = generalised_advantages(
            rewards * (1 - config.gamma),
            values,
            next_values,
            discounts,
            rows["terminated"],
            rows["ended"],
            config.lam,
        )
        playing = rows["playing"]
        kept: dict[str, Any] = {key: rows[key][playing] for key in ("view", "decision", "valid")}
        kept["context"] = Features.concatenate(collector.contexts).select(playing.flatten())
        log_prob, reference_kl = self._look_back(kept["context"], kept["decision"], kept["valid"])
        batch = Batch(
            **kept,
            log_prob=log_prob,
            advantage=advantage[playing],
            returns=(advantage + values)[playing],
            value=values[playing],
        )
        spread = batch.returns.var().clamp_min(1e-8)
        return batch, {
            "collect/success_end": float(episodes.success_at_end.mean()),
            "collect/success_ever": float(episodes.success_ever.mean()),
            "collect/return": float(np.mean([e.total_reward for e in episodes.episodes])),
            "collect/simulator_steps": float(self.simulator_steps),
            "critic/predicted_value": float(batch.value.mean()),
            "critic/actual_return": float(batch.returns.mean()),
            "critic/explained_variance": float(1 - (batch.returns - batch.value).var() / spread),
            "advantage/mean": float(batch.advantage.mean()),
            "advantage/std": float(batch.advantage.std()),
            "policy/reference_kl": reference_kl,
        }

    def _look_back(
        self, context: Features, decision: Tensor, valid: Tensor
    ) -> tuple[Tensor, float]:
        """Log-probability of every control step as it was sampled, and mean KL to the clone."""
        log_prob, kl = [], []
        for rows in torch.arange(len(decision), device=decision.device).split(
            self.config.minibatch
        ):
            likelihood = self.policy.actor.likelihood(context.select(rows), decision[rows])
            reference = self.reference.likelihood(context.select(rows), decision[rows])
            log_prob.append(likelihood.log_prob())
            kl.append(likelihood.kl(reference))
        return torch.cat(log_prob), float(torch.cat(kl)[valid].mean())

    def learn(self, batch: Batch, train_actor: bool) -> dict[str, float]:
        """Epochs over one collection; means of what was measured in them."""
        config = self.config
        advantage = batch.advantage
        batch.advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        measured: list[dict[str, float]] = []
        for _ in range(config.epochs):
            order = torch.randperm(len(advantage), generator=self._generator).to(advantage.device)
            for rows in order.split(config.minibatch):
                part = batch.select(rows)
                values = self._learn_critic(part)
                if train_actor:
                    values |= self._learn_actor(part)
                    # The last gradient step may have gone too far: no further one from here on.
                    train_actor = values["policy/kl"] < config.target_kl
                measured.append(values)
        batch.advantage = advantage
        means = {
            name: float(np.mean([values[name] for values in measured if name in values]))
            for name in {name for values in measured for name in values}
        }
        if self._noise:
            own = self.policy.spec.action.dim  # of several robots' numbers, which follow
            stds = torch.cat([p.detach()[..., :own].flatten() for p in self._noise]).exp()
            means["policy/std"] = float(stds.mean())
        means["policy/gradient_steps"] = float(sum("policy/kl" in v for v in measured))
        return means

    def _learn_critic(self, part: Batch) -> dict[str, float]:
        loss = (self.critic(part.view) - part.returns).square().mean()
        norm = self._descend(self._critic_optimizer, loss, list(self.critic.parameters()))
        return {"critic/loss": float(loss.detach()), "critic/grad_norm": norm}

    def _learn_actor(self, part: Batch) -> dict[str, float]:
        loss, values = self.actor_loss(part)
        values["policy/grad_norm"] = self._descend(self._actor_optimizer, loss, self._actor)
        return values

    def actor_loss(self, part: Batch) -> tuple[Tensor, dict[str, float]]:
        """Clipped surrogate, entropy and reference penalty; means over executed control steps."""
        config, model = self.config, self.policy.model
        likelihood = model.actor.likelihood(part.context, part.decision)
        log_ratio = likelihood.log_prob() - part.log_prob  # [b, k]
        ratio = log_ratio.exp()
        advantage = part.advantage[:, None]
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage)
        weight = part.valid.float() / part.valid.sum().clamp_min(1)
        entropy = (likelihood.entropy() * weight).sum()
        loss = -(surrogate * weight).sum() - config.entropy * entropy
        if config.reference_kl:
            with torch.no_grad():
                reference = self.reference.likelihood(part.context, part.decision)
            loss = loss + config.reference_kl * (likelihood.kl(reference) * weight).sum()
        with torch.no_grad():
            # http://joschu.net/blog/kl-approx.html, the unbiased low-variance estimator k3
            kl = ((ratio - 1 - log_ratio) * weight).sum()
            clip_fraction = (((ratio - 1).abs() > config.clip).float() * weight).sum()
        return loss, {
            "policy/loss": float(loss.detach()),
            "policy/kl": float(kl),
            "policy/entropy": float(entropy.detach()),
            "policy/clip_fraction": float(clip_fraction),
        }

    def _descend(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[nn.Parameter]
    ) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        optimizer.step()
        return float(norm)

    def _evaluate(self, seeds: Sequence[int]) -> dict[str, float]:
        """Greedy rollouts; the best so far is saved as `best`."""
        episodes = rollout(self.env, self.policy, seeds)
        success = float(episodes.success_at_end.mean())
        # Ties go to the later one: it explored less while it was trained.
        if success >= self.best_success:
            self.best_success = success
            self._save("best", with_state=False)
        return {
            "success/end": success,
            "success/ever": float(episodes.success_ever.mean()),
            "success/return": float(np.mean([e.total_reward for e in episodes.episodes])),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "simulator_steps": self.simulator_steps,
            "best_success": self.best_success,
            "critic": dict(self.critic.state_dict()),
            "actor_optimizer": self._actor_optimizer.state_dict(),
            "critic_optimizer": self._critic_optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    def _save(self, name: str, with_state: bool) -> None:
        state = self._state() if with_state else None
        self.policy.save(self.folder.path / name, state, self.folder.command)

    def _resume(self) -> bool:
        """Go on from the newest complete checkpoint; False where there is none."""
        if (state := self.policy.resume(self.folder.path)) is None:
            return False
        self.critic.load_state_dict(state["critic"])
        self._actor_optimizer.load_state_dict(state["actor_optimizer"])
        self._critic_optimizer.load_state_dict(state["critic_optimizer"])
        self._generator.set_state(state["generator"])
        self.iteration = state["iteration"]
        self.simulator_steps = state["simulator_steps"]
        self.best_success = state["best_success"]
        return True
