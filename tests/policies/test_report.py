"""The report: the numbers that were measured, films that play, and nothing from outside."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from policies.evaluation.habits.diagnosis import Diagnosis, diagnose
from policies.evaluation.habits.run_metrics import RunMetrics
from policies.evaluation.habits.verdict import Verdict
from policies.evaluation.report.charts import Line, distribution_chart, line_chart
from policies.evaluation.report.curves import Log, charts, read_log
from policies.evaluation.report.data import (
    Curve,
    Distribution,
    Film,
    PolicyResult,
    Report,
    Unfinished,
    table,
)
from policies.evaluation.report.formatting import duration, number
from policies.evaluation.report.goals import goals_section
from policies.evaluation.report.habits import habits_section
from policies.evaluation.report.page import render, write_report
from policies.evaluation.report.selection import choose_episodes
from policies.evaluation.speed import Speed
from policies.rollout import Episode, Episodes


def _episodes(successes: str) -> Episodes:
    """One episode a letter: E success at the end, L reached and lost, N never; four steps each."""
    patterns = {"E": [0, 1, 1, 1], "L": [0, 0, 1, 0], "N": [0, 0, 0, 0]}
    played = []
    for seed, letter in enumerate(successes, start=1_000_000):
        success = np.array(patterns[letter], dtype=bool)
        played.append(
            Episode(
                seed=seed,
                instruction="push <the> block",
                actions=np.zeros((4, 2), np.float32),
                rewards=success.astype(np.float32),
                success=success,
                terminated=False,
                truncated=True,
            )
        )
    return Episodes(tuple(played))


def _film(episodes: Episodes, index: int) -> Film:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for step in range(5):
            image = np.full((32, 32, 3), 50 * step, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    return Film(episodes.episodes[index], buffer.getvalue())


def _report() -> Report:
    clone, refined = _episodes("EEEENNLLNN" * 5), _episodes("EEEEEEEELN" * 5)
    curves = {
        "eval/success": Curve([0, 10, 20], [0.4, 0.6, 0.8]),
        "ppo/kl": Curve([0, 10, 20], [0.1, float("nan"), 0.3]),
    }
    return Report(
        title="Push & pull",
        task="FetchPush",
        created="2026-01-01 12:00 UTC",
        results=(
            PolicyResult("clone", "runs/a", clone, films=(_film(clone, 4),)),
            PolicyResult(
                "refined",
                "runs/b",
                refined,
                Speed(0.05, 0.0712, 60.3, batch=16),
                planning_steps_per_decision=320.0,
                ledger={"demonstration_episodes": 50, "collection_steps": 1_240_000},
                films=(_film(refined, 0), _film(refined, 9)),
                curves=curves,
            ),
        ),
        reference="clone",
        configuration={
            "task": "FetchPush",
            "ppo": {"clip": 0.2, "epochs": np.int64(10), "on": np.bool_(True)},
            "policies": ("a", "b"),
        },
        commands=["vla evaluate --task FetchPush"],
        machine={"Commit": "abc1234"},
    )


def test_the_table_holds_what_was_measured():
    """Rates, differences and means computed by hand from the letters above."""
    clone, refined = table(_report())
    assert (clone.success_at_end.value, clone.success_ever.value) == (0.4, 0.6)
    assert (refined.success_at_end.value, refined.success_ever.value) == (0.8, 0.9)
    assert clone.difference is None
    assert refined.difference is not None
    assert refined.difference.difference.value == pytest.approx(0.4)
    assert (refined.difference.only_ours, refined.difference.only_theirs) == (20, 0)
    assert refined.difference.p_value == 2 / 2**20
    assert clone.steps_to_success == 2
    assert clone.total_reward == pytest.approx(0.4 * 3 + 0.2 * 1)
    assert clone.length == 4


def test_the_page_shows_the_numbers_and_stands_alone(tmp_path):
    """Every figure a reader needs is in the text, and nothing is loaded from elsewhere."""
    write_report(tmp_path / "new" / "report", _report())
    page = (tmp_path / "new" / "report" / "report.html").read_text()
    for text in ("40%", "80%", "[28, 54]", "+40 points", "p &lt; 0.0001", "20 won, 0 lost"):
        assert text in page, text
    for text in (
        "50 ms",
        "71.2 ms",
        "60.3",
        "batch 16",
        "1.24M",
        "320",
        "unknown",
        "abc1234",
        "vla evaluate --task FetchPush",
        "ppo.clip",
    ):
        assert text in page, text
    assert "Push &amp; pull" in page
    assert "<the>" not in page
    assert not re.search(r"https?://|<link|<script|@import|url\(", page)
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 3
    assert all(source.startswith("data:video/mp4;base64,") for source in sources)


def test_success_is_counted_goal_by_goal():
    """A line a goal with its episodes; no section where all ask for the same."""
    report = _report()
    goals = tuple("lift <red>" if seed % 10 < 4 else "push" for seed in range(50))
    section = goals_section(dataclasses.replace(report, goals=goals))
    line = '<tr><td>{}</td><td class="n">{}</td><td class="n">{}</td><td class="n">{}</td></tr>'
    assert line.format("lift &lt;red&gt;", 20, "20 / 20", "20 / 20") in section
    # At the end, and at least once: reaching a goal and losing it again is told apart.
    assert line.format("push", 30, "0 / 10", "20 / 25") in section
    assert goals_section(report) == goals_section(dataclasses.replace(report, goals=("",) * 50))
    with pytest.raises(ValueError, match="2 goals for 50 seeds"):
        dataclasses.replace(report, goals=("lift", "push"))


def test_films_in_the_page_are_h264_that_decodes():
    """What a browser gets is the codec and pixel format that every browser plays."""
    page = render(_report())
    for text in re.findall(r"base64,([A-Za-z0-9+/=]+)", page):
        with av.open(io.BytesIO(base64.b64decode(text))) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert len(list(container.decode(stream))) == 5
    failures = page.split("Failures")
    assert "None filmed" in page, "the clone has successes that no film shows"
    assert "seed 1000004, not reached in 4 steps" in failures[1]


def test_the_json_is_strict_and_complete(tmp_path):
    """A program reads the same numbers; what is not finite is null, not the word NaN."""
    write_report(tmp_path, _report())

    def refuse(word: str):
        raise AssertionError(f"{word} is not JSON")

    data = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    clone, refined = data["policies"]
    assert clone["success_at_end"]["value"] == 0.4
    assert refined["difference"]["only_ours"] == 20
    assert refined["curves"]["ppo/kl"]["values"] == [0.1, None, 0.3]
    assert [e["first_success_step"] for e in clone["episodes"][:7]] == [2] * 4 + [None] * 2 + [3]
    assert data["configuration"]["policies"] == ["a", "b"]
    # Numbers and truth values stay such, numpy's too.
    assert data["configuration"]["ppo"] == {"clip": 0.2, "epochs": 10, "on": True}
    assert (clone["speed"], clone["ledger"], data["unfinished"]) == (None, None, None)
    assert refined["speed"]["latency_median_s"] == 0.05
    assert refined["speed"]["batch"] == 16
    assert refined["ledger"]["collection_steps"] == 1_240_000


def test_a_report_that_fails_leaves_the_older_one(tmp_path):
    """Nothing half-written: both files are built before either is touched."""
    write_report(tmp_path, _report())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = _report()
    broken.results[1].curves["bad"] = Curve([0], ["words"])  # type: ignore[index]
    with pytest.raises(ValueError, match="words"):
        write_report(tmp_path, broken)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_comparison_is_reported_as_far_as_it_went(tmp_path):
    """Who was stopped, why and after what; also where nobody got to the end."""
    report, ended = _report(), _episodes("EN").episodes
    stopped = Unfinished("third", "RuntimeError: out of <memory>", ended)
    write_report(tmp_path, replace(report, unfinished=stopped))
    page = (tmp_path / "report.html").read_text()
    assert "<strong>third</strong> was played, after 2 of its episodes" in page
    assert "out of &lt;memory&gt;" in page
    assert "80%" in page
    write_report(tmp_path, replace(report, results=(), unfinished=stopped, goals=("", "")))
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["policies"] == []
    assert [e["success_at_end"] for e in data["unfinished"]["episodes"]] == [True, False]
    assert "No policy was played to its last episode" in (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match="needs policies"):
        replace(report, results=())


def test_policies_are_compared_on_equal_seeds_only():
    """A paired difference over different initial states would mean nothing."""
    report = _report()
    clone, refined = report.results
    other = replace(refined, episodes=_episodes("E" * 49))
    with pytest.raises(ValueError, match="other seeds"):
        replace(report, results=(clone, other))
    with pytest.raises(ValueError, match="different names"):
        replace(report, results=(clone, clone))
    with pytest.raises(ValueError, match="reference 'expert'"):
        replace(report, reference="expert")


def test_curves_are_read_back_and_a_resumed_run_is_one_curve(tmp_path: Path):
    """The later file wins where a resumed run repeats steps."""
    from torch.utils.tensorboard import SummaryWriter

    for part, start in (("1", 0), ("2", 20)):
        with SummaryWriter(str(tmp_path), filename_suffix=f".{part}") as writer:
            for step in range(start, start + 30):
                writer.add_scalar("ppo/kl", int(part), step)
    curves = read_log(tmp_path).curves
    assert list(curves) == ["ppo/kl"]
    assert list(curves["ppo/kl"].steps) == list(range(50))
    assert list(curves["ppo/kl"].values) == [1.0] * 20 + [2.0] * 30
    assert read_log(tmp_path / "nothing").curves == {}


def test_a_run_in_a_run_s_folder_is_another_one(tmp_path: Path):
    """As where a clone is refined into a folder of its own."""
    from torch.utils.tensorboard import SummaryWriter

    for folder, value in ((tmp_path, 1.0), (tmp_path / "refined", 2.0)):
        with SummaryWriter(str(folder)) as writer:
            writer.add_scalar("success/end", value, 0)
    assert list(read_log(tmp_path).curves["success/end"].values) == [1.0]


def test_a_report_does_without_tensorboard(tmp_path: Path, monkeypatch):
    """It then has no charts."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("loss", 1.0, 0)
    module = "tensorboard.backend.event_processing.event_accumulator"
    monkeypatch.setitem(sys.modules, module, None)
    assert read_log(tmp_path) == Log({}, {})


def test_logged_distributions_are_read_back_as_quantiles(tmp_path: Path):
    """Quantiles of a known normal distribution, as fine as TensorBoard's buckets allow."""
    from torch.utils.tensorboard import SummaryWriter

    samples = np.random.default_rng(0).normal(3.0, 2.0, size=20_000)
    with SummaryWriter(str(tmp_path)) as writer:
        for step in (0, 64):
            writer.add_histogram("advantage", samples + step, step)
    distribution = read_log(tmp_path).distributions["advantage"]
    assert distribution.steps == [0, 64]
    for level, expected in ((0.05, -0.29), (0.25, 1.65), (0.5, 3.0), (0.75, 4.35), (0.95, 6.29)):
        assert distribution.quantiles[level][0] == pytest.approx(expected, abs=0.15)
    drawn = distribution_chart(distribution, 1)
    assert drawn.count("<polygon") == 2
    assert "nan" not in drawn
    assert "no finite value" in distribution_chart(Distribution([0], {0.5: [float("nan")]}), 0)


def test_charts_come_in_the_order_of_reading():
    """Success first, promise and outcome together, the rest by name."""
    tags = [
        "z",
        "loss/value",
        "critic/predicted_value",
        "critic/actual_return",
        "a",
        "eval/success",
    ]
    assert charts(tags) == [
        ["eval/success"],
        ["critic/actual_return", "critic/predicted_value"],
        ["loss/value"],
        ["a"],
        ["z"],
    ]


def test_runs_of_unlike_length_have_charts_of_their_own():
    """Forty iterations are not drawn into the corner of forty thousand updates."""
    report = _report()
    clone, refined = report.results
    long = replace(clone, curves={"eval/success": Curve([0, 9000], [0, 1])})
    page = render(replace(report, results=(long, refined)))
    assert "<figcaption>clone: eval/success<" in page
    assert "<figcaption>refined: eval/success<" in page
    page = render(replace(report, results=(replace(long, curves=refined.curves), refined)))
    assert "<figcaption>clone, refined: eval/success<" in page


def test_charts_survive_what_runs_log():
    """Gaps, constants, single points and nothing at all; a long run becomes a small drawing."""
    gap = line_chart([Line("a", Curve([0, 1, 2, 3], [1, float("inf"), 2, 3]), 0)])
    assert "1 not finite" in gap
    assert gap.count("M") >= 2
    assert "nan" not in gap
    assert "no finite value" in line_chart([Line("a", Curve([0], [float("nan")]), 0)])
    assert "<path" in line_chart([Line("a", Curve([5], [2.0]), 0)])
    assert "nan" not in line_chart([Line("a", Curve([0, 1], [0.0, 0.0]), 0)])
    long = line_chart([Line("a", Curve(range(50_000), np.sin(np.arange(50_000))), 0)])
    assert len(long) < 20_000


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.5"), (1234, "1.23k"), (2.5e6, "2.5M"), (-4e-5, "-4e-5"), (99.96, "100")],
)
def test_numbers_are_short(value, text):
    """Three digits and a letter."""
    assert number(value) == text


def test_durations_have_the_unit_that_suits_them():
    """From microseconds to seconds."""
    assert [duration(s) for s in (2.5, 0.0123, 4e-5, 0)] == ["2.5 s", "12.3 ms", "40 µs", "0 s"]
    assert duration(float("nan")) == "&ndash;"


def test_the_states_that_divide_the_policies_are_filmed():
    """Successes first, then failures; the same disagreement shows from both sides."""
    played = {"clone": _episodes("ENEENNNE"), "refined": _episodes("EEEENNEE")}
    chosen = choose_episodes(played, per_outcome=2)
    assert chosen["clone"][2:] == [1, 6], "states that the other policy solves"
    assert chosen["refined"][:2] == [1, 6]
    assert chosen["refined"][2:] == [4, 5]
    assert choose_episodes(played, per_outcome=0) == {"clone": [], "refined": []}


def test_habits_stand_beside_the_policy_whose_run_they_judge():
    """A table a run with its calibration; nothing for policies from no run."""
    report = _report()
    assert habits_section(report.results) == ""
    verdict = Verdict("KL", "red", "moved by <3> nats", "a smaller rate")
    judged = Diagnosis((verdict,), calibration=((0.1, 0.2), (0.5, 0.4)))
    silent = diagnose(RunMetrics({}))
    results = tuple(
        replace(result, diagnosis=one)
        for result, one in zip(report.results, (silent, judged), strict=True)
    )
    page = render(replace(report, results=results))
    assert '<td class="bad">red</td><td>moved by &lt;3&gt; nats</td><td>a smaller rate</td>' in page
    assert page.count("actual return over predicted value") == 1
    assert page.count("<summary>nothing recorded</summary>") == 1


def test_the_report_json_holds_the_habits(tmp_path):
    """Verdicts as data; null for a policy from no run."""
    report = _report()
    first = replace(report.results[0], diagnosis=Diagnosis((Verdict("KL", "green", "near"),)))
    write_report(tmp_path, replace(report, results=(first, report.results[1])))
    data = json.loads((tmp_path / "report.json").read_text())
    judged, other = (policy["habits"] for policy in data["policies"])
    assert judged["verdicts"][0] == {
        "habit": "KL",
        "state": "green",
        "reason": "near",
        "advice": "",
    }
    assert other is None
