"""Comparisons on disk, the judges that make them, and what is paired and held out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from compared import compared, open_store, trajectory, whole
from point_env import PointVecEnv
from two_robots import tiny_policy

from policies.folder_lock import FolderInUseError
from policies.preferences.comparisons import (
    Comparison,
    ComparisonError,
    ComparisonStore,
    Pair,
    Segment,
)
from policies.preferences.judges import ScriptedJudge
from policies.preferences.pairing import make_pairs, split_by_state
from policies.preferences.trajectories import (
    Trajectory,
    collect_trajectories,
    interface_fingerprint,
)
from policies.reinforcement.collect import collect

EPISODES = {
    "a": trajectory([[0.1], [0.2]], [[0.0, 0.0], [1.0, 1.0]]),
    "b": trajectory([[0.3], [0.4]], [[1.0, 0.0], [0.0, 0.0]]),
    "c": trajectory([[0.5], [0.6]], [[0.0, 1.0], [0.0, 0.0]]),
    "d": trajectory([[0.7], [0.8]], [[1.0, 1.0], [0.0, 1.0]], seed=1),
}


def test_a_trajectory_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every tensor, and the texts; what is damaged is named."""
    file = tmp_path / "one.safetensors"
    EPISODES["a"].save(file)
    found = Trajectory.load(file)
    assert (found.seed, found.instruction, found.policy) == (0, "go to 0.30", "a policy")
    for name in ("actions", "rewards", "success", "valid", "privileged", "reached", "sample"):
        assert torch.equal(getattr(found, name), getattr(EPISODES["a"], name))
    assert torch.equal(found.features.proprio, EPISODES["a"].features.proprio)
    assert found.ends == [2, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"one\.safetensors is no readable trajectory"):
        Trajectory.load(file)


def test_collected_trajectories_are_what_was_played() -> None:
    """Row by row the experience of `collect`, cut at the ends of the episodes."""
    env, policy = PointVecEnv(3, episode_length=7), tiny_policy(PointVecEnv.spec)
    generator = torch.Generator().manual_seed(0)
    seeds = [4, 4, 5]
    found = collect_trajectories(env, policy, seeds, generator, "me", "mine")
    generator.manual_seed(0)
    experience, episodes = collect(env, policy, seeds, "privileged", generator)
    assert [t.seed for t in found] == seeds
    for row, (one, episode) in enumerate(zip(found, episodes.episodes, strict=True)):
        active = experience.active[:, row]
        assert len(one) == int(active.sum()) == 3  # chunks of 3 in 7 steps
        assert one.ends[-1] == episode.length == len(one.actions)
        assert torch.equal(one.privileged, experience.next_critic_obs[active, row])
        assert torch.equal(one.sample, experience.sample[active, row])
        assert torch.equal(one.rewards, experience.rewards[active, row])
        assert one.rewards.sum() == episode.total_reward
        assert bool(one.success[-1]) == episode.success_at_end
    assert not torch.equal(found[0].sample, found[1].sample), "attempts differ"
    with pytest.raises(ValueError, match="4 seeds but 3 environments"):
        collect_trajectories(env, policy, [0, 1, 2, 3], generator, "me", "mine")


def test_an_interface_is_all_but_the_actors_weights() -> None:
    """A refined clone has that of the clone; another perception has another."""
    policy = tiny_policy(PointVecEnv.spec)
    before = interface_fingerprint(policy)
    with torch.no_grad():
        next(iter(policy.actor.parameters())).add_(1)
    assert interface_fingerprint(policy) == before
    with torch.no_grad():
        next(iter(policy.model.pointer.parameters())).add_(1)
    assert interface_fingerprint(policy) != before


def test_judgements_are_kept_and_read_again(tmp_path: Path) -> None:
    """Every label, also by another process's eyes; each judge's questions apart."""
    store = open_store(tmp_path / "store")
    labels = {("a", "b"): 1.0, ("b", "c"): 0.5, ("a", "c"): None, ("c", "b"): 0.0}
    for comparison in compared(EPISODES, labels):
        store.append(comparison)
        assert ComparisonStore(store.folder).comparisons[-1] == comparison, "on disk at once"
    found = ComparisonStore(store.folder)
    assert [c.label for c in found.comparisons] == [*labels.values()]
    assert [c.told for c in found.comparisons] == [True, False, False, True]
    assert found.judged("test") == {c.pair for c in found.comparisons}
    assert found.judged("person") == set()


def test_a_line_that_a_crash_cut_short_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    """It was never acknowledged; the next judgement does not stick to its rest."""
    store = open_store(tmp_path / "store")
    one, other = compared(EPISODES, {("a", "b"): 1.0, ("b", "c"): 0.0})
    store.append(one)
    file = store.folder / "comparisons.jsonl"
    whole_file = file.read_bytes()
    file.write_bytes(whole_file + whole_file[:20])
    assert ComparisonStore(store.folder).comparisons == [one]
    store.close()
    again = open_store(store.folder)
    assert file.read_bytes() == whole_file
    again.append(other)
    assert ComparisonStore(store.folder).comparisons == [one, other]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is damaged"),
        ('{"label": 1.0}', "line 2 is damaged"),
        ('{"label": 0.7}', r"line 2 is damaged: 0\.7 is none of the labels \(1\.0, 0\.5"),
    ],
)
def test_a_damaged_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    """In the middle of the file it is no crash of ours."""
    store = open_store(tmp_path / "store")
    store.append(compared(EPISODES, {("a", "b"): 1.0})[0])
    with (store.folder / "comparisons.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ComparisonError, match=message):
        ComparisonStore(store.folder)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    """Other settings, other tasks, another program's folder, nothing at all, what is missing."""
    store = open_store(tmp_path / "store")
    store.close()
    with pytest.raises(ComparisonError, match=r"log_std: -1\.0 recorded, -2\.0 now"):
        open_store(store.folder, log_std=-2.0)
    open_store(store.folder).close()  # the refusal has freed it
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".lock").touch()  # killed before the settings were written
    open_store(tmp_path / "begun").close()
    with pytest.raises(ComparisonError, match="holds comparisons of point, not of FetchPush"):
        store.require_task("FetchPush")
    with pytest.raises(ComparisonError, match="holds 0 episodes and no judgement of them: go on"):
        store.require_task("point")
    with pytest.raises(ComparisonError, match="record some with `vla compare"):
        ComparisonStore(tmp_path / "none")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(ComparisonError, match="holds something else"):
        open_store(tmp_path / "other")
    with pytest.raises(ComparisonError, match=r"lacks the trajectories \['a'\]"):
        store.load(["a"])


# Another program, which holds the lock until its input ends; without torch it starts at once.
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_one_process_writes(tmp_path: Path) -> None:
    """Two would judge the same pairs."""
    open_store(tmp_path / "store").close()
    words = [sys.executable, "-c", HOLD, str(tmp_path / "store" / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(FolderInUseError, match="another process writes"):
            open_store(tmp_path / "store")
        other.communicate()
    open_store(tmp_path / "store").close()


def test_judgements_are_exported_as_a_table(tmp_path: Path) -> None:
    """JSON and parquet with equal rows; no other format."""
    store = open_store(tmp_path / "store")
    for comparison in compared(EPISODES, {("a", "b"): 1.0, ("b", "c"): None}):
        store.append(comparison)
    store.export(tmp_path / "out" / "table.json")
    store.export(tmp_path / "out" / "table.parquet")
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert rows[0] == {
        "first_trajectory": "a",
        "first_start": 0,
        "first_stop": 2,
        "second_trajectory": "b",
        "second_start": 0,
        "second_stop": 2,
        "label": 1.0,
        "judge": "test",
        "task": "point",
    }
    assert rows == pq.read_table(tmp_path / "out" / "table.parquet").to_pylist()
    with pytest.raises(ComparisonError, match=r"to \.json or \.parquet, not to"):
        store.export(tmp_path / "table.csv")


def test_pairs_are_of_one_initial_state() -> None:
    """Every two episodes of it once; segments lie inside of their episodes."""
    lengths = {"a": (0, 5), "b": (0, 5), "c": (0, 4), "d": (1, 5), "e": (1, 5)}
    pairs = make_pairs(lengths, None, None, seed=0)
    found = [frozenset((p.first.trajectory, p.second.trajectory)) for p in pairs]
    assert sorted(map(sorted, found)) == [["a", "b"], ["a", "c"], ["b", "c"], ["d", "e"]]
    assert all(
        (s.start, s.stop) == (0, lengths[s.trajectory][1]) for p in pairs for s in (p.first,)
    )
    assert make_pairs(lengths, None, 100, seed=0) == pairs
    assert make_pairs(lengths, None, 2, seed=0) == pairs[:2], "more pairs begin with the same"
    assert len(make_pairs(lengths, 2, None, seed=0)) == 4
    assert {make_pairs(lengths, None, 9, seed=s)[0].first.trajectory for s in range(20)} > {"a"}

    parts = make_pairs(lengths, 2, 30, seed=0)
    assert len(set(parts)) == len(parts) == 30
    segments = [s for p in parts for s in (p.first, p.second)]
    assert {s.stop - s.start for s in segments} == {2}
    assert {s.start for s in segments} == {0, 1, 2, 3}
    assert all(s.stop <= lengths[s.trajectory][1] for s in segments)
    assert make_pairs({"a": (0, 5), "d": (1, 5)}, 2, 9, seed=0) == []


def test_held_out_states_share_no_episode_with_the_others() -> None:
    """A fifth of the states, with all of their comparisons; both parts are needed."""
    names = {f"{seed}{attempt}": seed for seed in range(10) for attempt in "xyz"}
    comparisons = [
        Comparison(Pair(Segment(one, 0, 1), Segment(other, 0, 1)), 1.0, "test")
        for one in names
        for other in names
        if one < other and names[one] == names[other]
    ]
    train, heldout = split_by_state(comparisons, names, 0.2, seed=0)
    states = [{names[c.pair.first.trajectory] for c in part} for part in (train, heldout)]
    assert (len(states[0]), len(states[1])) == (8, 2)
    assert not states[0] & states[1]
    assert len(train) + len(heldout) == len(comparisons) == 30
    alone = [c for c in comparisons if names[c.pair.first.trajectory] == 3]
    with pytest.raises(ComparisonError, match="3 comparisons of 1 initial states leave 0 to learn"):
        split_by_state(alone, names, 0.2, seed=0)


@pytest.mark.parametrize(
    ("criterion", "first", "second", "label"),
    [
        ("return", "a", "b", 1.0),
        ("return", "b", "a", 0.0),
        ("return", "b", "c", 0.5),
        ("success", "a", "b", 1.0),
        ("success", "b", "c", 0.5),
    ],
)
def test_a_judge_compares_returns_or_success(
    criterion: str, first: str, second: str, label: float
) -> None:
    """Of the segments: a return of 2 against 1, and success at the end or none."""
    judge = ScriptedJudge(criterion, 0.0, seed=0)  # type: ignore[arg-type]
    assert judge(whole(EPISODES, first, second), EPISODES[first], EPISODES[second]) == label


def test_a_judge_sees_the_segment_alone() -> None:
    """The end of b is worth nothing, the beginning of a neither."""
    judge = ScriptedJudge("return", 0.0, seed=0)
    assert judge.value(Segment("a", 0, 1), EPISODES["a"]) == 0
    assert judge.value(Segment("a", 1, 2), EPISODES["a"]) == 2
    assert ScriptedJudge("success", 0.0, 0).value(Segment("c", 0, 1), EPISODES["c"]) == 1


def test_a_noisy_judge_errs_as_often_as_told_and_always_alike() -> None:
    """Its errors belong to the pair; ties are never changed."""
    judge = ScriptedJudge("return", 0.2, seed=0)
    pairs = [Pair(Segment(f"a{i}", 0, 2), Segment("b", 0, 2)) for i in range(2000)]
    labels = [judge(pair, EPISODES["a"], EPISODES["b"]) for pair in pairs]
    assert sum(labels) / len(labels) == pytest.approx(0.8, abs=0.03)
    assert [judge(pair, EPISODES["a"], EPISODES["b"]) for pair in pairs] == labels
    assert {judge(pair, EPISODES["b"], EPISODES["c"]) for pair in pairs} == {0.5}
    others = ScriptedJudge("return", 0.2, seed=1)
    assert [others(pair, EPISODES["a"], EPISODES["b"]) for pair in pairs] != labels
