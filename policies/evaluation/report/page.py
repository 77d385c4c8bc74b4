"""The report as one HTML page that needs nothing from outside itself."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vla_runtime.atomic_folder import write_atomically

from policies.evaluation.report.charts import COLOURS, rate_bar
from policies.evaluation.report.cost import cost_section
from policies.evaluation.report.data import (
    Film,
    PolicyResult,
    Report,
    Row,
    seeds_of,
    table,
    to_json,
)
from policies.evaluation.report.formatting import (
    bounds,
    outcome,
    p_value,
    points,
    rate,
)
from policies.evaluation.report.goals import goals_section
from policies.evaluation.report.habits import habits_section
from policies.evaluation.report.training import training_section
from policies.rollout import Episode

REPORT_FILES = ("report.json", "report.html")
"""In the order in which they are written."""


def write_report(path: Path, report: Report) -> None:
    """Write `report.json` and the self-contained `report.html` into a folder.

    Each file appears whole or not at all.
    """
    path.mkdir(parents=True, exist_ok=True)
    for name, text in zip(REPORT_FILES, (to_json(report), render(report)), strict=True):
        # A report is written again after every policy: a browser never loads half a page.
        write_atomically(path / name, text)


def render(report: Report) -> str:
    """The page."""
    rows = table(report)
    sections = [_header(report, rows)]
    if report.results:
        # In the order a reader asks: who wins, at what cost, where, what it looks like, why,
        # and whether the training was sound.
        sections += [
            _results(report, rows),
            cost_section(rows),
            goals_section(report),
            _states(report),
            _films(report, rows),
            habits_section(report.results),
            training_section(report.results),
        ]
    sections.append(_repeat(report))
    return html_page(report.title, "\n".join(sections))


def html_page(title: str, body: str) -> str:
    """A page in the reports' style; `body` is HTML."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _header(report: Report, rows: Sequence[Row]) -> str:
    facts = {"Task": report.task, "Written": report.created, **report.machine}
    if report.results:
        seeds = seeds_of(report.results[0])
        span = f"seeds {min(seeds):,} to {max(seeds):,}"
        # Equal seeds are equal initial states: only then are pairs comparable.
        facts["Initial states"] = f"{len(seeds)}, {span}, the same for every policy"
    stopped = ""
    if (unfinished := report.unfinished) is not None:
        stopped = (
            f'<p class="lede bad">Stopped while <strong>{escape(unfinished.name)}</strong> was '
            f"played, after {len(unfinished.episodes)} of its episodes, which report.json holds: "
            f"{escape(unfinished.reason)}</p>"
        )
    listed = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>"
        for label, value in facts.items()
    )
    return (
        f'<header><p class="eyebrow">Policy comparison</p><h1>{escape(report.title)}</h1>'
        f'{stopped}<p class="lede">{_headline(report, rows)}</p>'
        f'<dl class="facts">{listed}</dl></header>'
    )


def _headline(report: Report, rows: Sequence[Row]) -> str:
    """What the table says, in words."""
    if not rows:
        return "No policy was played to its last episode."
    trials = len(seeds_of(report.results[0]))
    reference = next(row for row in rows if row.name == report.reference)
    sentences = [
        f"<strong>{escape(reference.name)}</strong> succeeds at the end of "
        f"<strong>{rate(reference.success_at_end, trials)}</strong> of {trials} episodes."
    ]
    for row in rows:
        if row.difference is None:
            continue
        difference = row.difference.difference
        # The interval decides and not the p-value, which is more conservative.
        if difference.low <= 0 <= difference.high:
            verdict = "a difference that these episodes cannot tell from zero"
        else:
            side = "above" if difference.value > 0 else "below"
            verdict = f"{points(abs(difference.value), trials, sign=False)} points {side} it"
        sentences.append(
            f"<strong>{escape(row.name)}</strong>: "
            f"<strong>{rate(row.success_at_end, trials)}</strong>, {verdict}."
        )
    return " ".join(sentences)


def _results(report: Report, rows: Sequence[Row]) -> str:
    trials = len(seeds_of(report.results[0]))
    numbers = ("Steps to<br>success", "Episode<br>length", "Return")
    head = (
        "<th>Policy</th><th>Success at the end</th><th>Success ever</th>"
        f"<th>At the end, against {escape(report.reference)}</th>"
        + "".join(f'<th class="n">{label}</th>' for label in numbers)
    )
    lines = "".join(_result_line(row, colour, trials) for colour, row in enumerate(rows))
    return (
        "<section><h2>Results</h2>"
        '<p class="note">“At the end” asks for the task&rsquo;s condition after the last control '
        "step, “ever” after any. Brackets hold 95% intervals: Wilson scores for a rate, "
        "Newcombe&rsquo;s paired score interval (method 10) for a difference on equal initial "
        "states; p is the exact McNemar test. Steps to success is the median over episodes that "
        "reached it.</p>"
        f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
        "</div></section>"
    )


def _result_line(row: Row, colour: int, trials: int) -> str:
    end, ever, unknown = row.success_at_end, row.success_ever, '<span class="soft">&ndash;</span>'
    if row.difference is None:
        compared = '<span class="soft">reference</span>'
    else:
        d = row.difference
        # Coloured only where the interval excludes 0.
        tone = "good" if d.difference.low > 0 else "bad" if d.difference.high < 0 else "soft"
        compared = (
            f'<span class="{tone}">{points(d.difference.value, trials)} points</span>'
            f"<small>[{points(d.difference.low, trials)}, {points(d.difference.high, trials)}], "
            f"{p_value(d.p_value)}</small>"
            f"<small>{d.only_ours} won, {d.only_theirs} lost</small>"
        )
    steps = unknown if row.steps_to_success is None else f"{row.steps_to_success:g}"
    numbers = (steps, f"{row.length:.3g}", f"{row.total_reward:.3g}")
    return (
        f'<tr><td><span class="dot c{colour % COLOURS}"></span>{escape(row.name)}'
        # Paths may wrap at their slashes, or one long path would widen the table.
        f'<small class="source">{escape(row.source).replace("/", "/<wbr>")}</small></td>'
        f'<td class="rate">{rate_bar(end, colour % COLOURS)}'
        f"{rate(end, trials)} <small>{bounds(end, trials)}</small></td>"
        f"<td>{rate(ever, trials)} <small>{bounds(ever, trials)}</small></td>"
        f"<td>{compared}</td>" + "".join(f'<td class="n">{cell}</td>' for cell in numbers) + "</tr>"
    )


def _states(report: Report) -> str:
    """One column per initial state, sorted from those that every policy solves to the hardest."""
    # [policies][episodes]; equal positions are equal initial states.
    played = [result.episodes.episodes for result in report.results]
    solved = [
        sum(episode.success_at_end for episode in column) for column in zip(*played, strict=True)
    ]
    # One order for all policies, so that a column is the same state in every row.
    order = sorted(range(len(solved)), key=lambda i: (-solved[i], played[0][i].seed))
    width = 1 - min(0.14, len(order) / 700)  # a visible gap between few cells, none between many
    lines = []
    for colour, result in enumerate(report.results):
        cells = "".join(
            f'<rect class="{_cell(episode)}" x="{x}" width="{width:.3f}" height="1">'
            f"<title>seed {episode.seed}: {escape(outcome(episode))}</title></rect>"
            for x, episode in enumerate(result.episodes.episodes[i] for i in order)
        )
        lines.append(
            f'<span><span class="dot c{colour % COLOURS}"></span> {escape(result.name)}</span>'
            f'<svg class="c{colour % COLOURS}" viewBox="0 0 {len(order)} 1" '
            # Stretched to the page, whatever the number of episodes.
            f'preserveAspectRatio="none" role="img">{cells}</svg>'
        )
    return (
        "<section><h2>Initial state by initial state</h2>"
        '<p class="note">One column is one initial state, sorted from those that every policy '
        "solves to those that none does. Point at a cell for its seed.</p>"
        '<p class="key"><span><i></i>success at the end</span>'
        '<span><i class="ever"></i>reached, then lost</span>'
        '<span><i class="never"></i>never</span></p>'
        f'<div class="card states">{"".join(lines)}</div></section>'
    )


def _cell(episode: Episode) -> str:
    if episode.success_at_end:
        return "cell-end"
    return "cell-ever" if episode.success_ever else "cell-never"


def _films(report: Report, rows: Sequence[Row]) -> str:
    if not any(result.films for result in report.results):
        return ""
    trials = len(seeds_of(report.results[0]))
    blocks = "".join(
        f'<h3><span class="dot c{colour % COLOURS}"></span>{escape(result.name)} '
        f'<span class="soft">{rate(row.success_at_end, trials)} at the end</span></h3>'
        f'<div class="films">{_reel(result, True)}{_reel(result, False)}</div>'
        for colour, (result, row) in enumerate(zip(report.results, rows, strict=True))
    )
    return f"<section><h2>Films</h2>{blocks}</section>"


def _reel(result: PolicyResult, success: bool) -> str:
    films = [film for film in result.films if film.episode.success_at_end is success]
    # Of all episodes: only a few of them are filmed.
    count = int((result.episodes.success_at_end == success).sum())
    name, tone = ("Successes", "good") if success else ("Failures", "bad")
    if films:
        body = f'<div class="reel">{"".join(map(_film, films))}</div>'
    else:
        body = f'<p class="none">{"None filmed." if count else "There is none."}</p>'
    return (
        f'<div><p class="outcome {tone}">{name} <span class="soft">{count} in all</span></p>'
        f"{body}</div>"
    )


def _film(film: Film) -> str:
    # Inside the page: it can be moved or mailed as one file.
    data = base64.b64encode(film.mp4).decode("ascii")
    episode = film.episode
    return (
        # Browsers play by themselves only what is muted.
        "<figure><video autoplay muted loop playsinline controls "
        f'src="data:video/mp4;base64,{data}"></video>'
        f"<figcaption>“{escape(episode.instruction)}”"
        f'<span class="block">seed {episode.seed}, {escape(outcome(episode))}</span>'
        "</figcaption></figure>"
    )


def _repeat(report: Report) -> str:
    # Every text in the page is escaped: instructions, names and paths are foreign input.
    commands = escape("\n".join(report.commands))
    return (
        "<section><h2>Repeat it</h2>"
        f"<pre>{commands}</pre>"
        f'<h3>Configuration</h3><div class="card"><table class="pairs">'
        f"{_pairs(_leaves(report.configuration))}</table></div></section>"
    )


def _leaves(data: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    for key, value in data.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            # Dotted names, as the command line spells them.
            yield from _leaves(value, name)
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        else:
            yield name, str(value)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in pairs
    )
