"""The verb ``audit``: compares any two classifiers class by class from prediction files, without config or store."""

from __future__ import annotations

import argparse
import html
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import bias
from pipeline.bias import Audit
from pipeline.files import write_atomically
from pipeline.predictions import read, read_groups
from pipeline.registry import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.description = (
        "Compares candidates with a reference on the same test set, class by class. A file is .npz with 'labels' and "
        "'logits' or 'predictions', or with 'confusion' [C, C] (rows = true class); .csv with the header "
        "label,prediction[,group]; or a Predict folder of the store."
    )
    parser.add_argument("--reference", required=True, metavar="REF", help="predictions of the dense network")
    parser.add_argument(
        "--candidate", required=True, nargs="+", metavar="CAND", help="predictions of trials of one method"
    )
    parser.add_argument(
        "--reference-trials",
        nargs="+",
        default=[],
        metavar="REF2",
        help="more dense networks: with REF they make the floor",
    )
    parser.add_argument(
        "--groups", metavar="FILE", help=".csv with a column 'group' or .npz with 'groups', a row an example"
    )
    parser.add_argument(
        "--json", metavar="PATH", help="write the result here; - for the standard output and nothing else"
    )
    parser.add_argument("--html", metavar="PATH", help="write one self-contained page here")
    parser.add_argument(
        "--resamples", type=int, default=2000, help="bootstrap resamples, at least 100 (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the resamples, 0 or more (default: %(default)s)")
    parser.add_argument(
        "--smoothing",
        type=float,
        default=0.0,
        help="pseudo-count for classes without reference errors (default: %(default)s)",
    )
    parser.add_argument(
        "--undefined",
        choices=("omit", "error"),
        default="omit",
        help="what to do with such classes (default: %(default)s)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs the verb: prints a summary, writes what was asked for, returns 0.

    Raises:
        UserError: a file that cannot be read, or files that do not belong together.
    """
    paths = [arguments.reference, *arguments.candidate, *arguments.reference_trials]
    predictions = read(paths)
    groups, group_names = read_groups(arguments.groups) if arguments.groups else (None, None)
    reference, rest = predictions[0], predictions[1:]
    candidates, trials = rest[: len(arguments.candidate)], rest[len(arguments.candidate) :]
    if groups is not None and len(groups) != len(reference.labels):
        raise UserError(
            f"{arguments.groups}: {len(groups)} groups for {len(reference.labels)} examples; give one per example"
        )
    classes = bias.class_names(predictions)
    floor = bias.floor([reference, *trials], classes=classes, smoothing=arguments.smoothing) if trials else None
    result = bias.audit(
        references=reference,
        candidates=candidates,
        floor=floor,
        classes=classes,
        groups=groups,
        group_names=group_names,
        resamples=arguments.resamples,
        seed=arguments.seed,
        smoothing=arguments.smoothing,
        undefined=arguments.undefined,
    )
    text = json.dumps(
        {"reference": reference.source, **result.to_json()}, indent=2, allow_nan=False, ensure_ascii=False
    )
    if arguments.json == "-":
        sys.stdout.write(text + "\n")
    else:
        show(result, reference.source)
        if arguments.json:
            _write(arguments.json, text + "\n")
    if arguments.html:
        _write(arguments.html, page(result, reference.source))
    return 0


def _write(path: str, text: str) -> None:
    target = Path(path).resolve()  # what a link leads to
    try:
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8")  # a pipe or a device must stay what it is
        else:
            write_atomically(target, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


# Telling

INTERVAL = "95 % interval for the value without sampling noise"


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: three significant digits, a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def footnote(result: Audit) -> str:
    """What the intervals are for."""
    units = "test examples and trials" if len(result.trials) > 1 else "test examples"
    return (
        f"Intervals, over {units}, are for the value that an endless test set would give. A value that sampling noise "
        "inflates, such as CEV, SDE or a largest gap, may lie above its interval."
    )


def counted(many: int, noun: str) -> str:
    """'1 trial', '2 trials'."""
    return f"{many:,} {noun}{'' if many == 1 else 's'}"


def classes_used(result: Audit) -> str:
    """How many classes the values rest on; those of each trial apart where the trials differ."""
    several = " in every trial" if len(result.trials) > 1 else ""
    whole = f"{result.classes_used} of {result.classes} classes{several}"
    own = sorted({trial["classes_used"] for trial in result.trials})
    if own == [result.classes_used]:
        return whole
    return f"{' to '.join(map(str, own[:: max(len(own) - 1, 1)]))} of {result.classes} classes by trial, {whole}"


def _range(bounds) -> str:
    return f"{number(bounds.low)} to {number(bounds.high)}" if bounds is not None else "no interval"


def worst(result: Audit, many: int = 10) -> list[dict[str, Any]]:
    """Classes that lost most recall beyond what the whole test set lost, worst first."""
    rows = [row for row in result.per_class if row["excess_accuracy_gap"] is not None]
    return sorted(rows, key=lambda row: -row["excess_accuracy_gap"])[:many]


def sentence(result: Audit) -> str:
    """What was found, for somebody who has never heard of CEV."""
    change = result.measures.get("accuracy_change")
    lost = -change.value * 100 if change is not None and change.value is not None else 0.0
    parts = []
    if abs(lost) < 0.05:
        parts.append("The candidate is as accurate as the reference overall")
    else:
        parts.append(f"The candidate gets {abs(lost):.1f} {'fewer' if lost > 0 else 'more'} of 100 examples right")
    low = result.cev_interval.low if result.cev_interval is not None else None
    moved = [row for row in worst(result, len(result.per_class)) if row["significant"]]
    if result.cev == 0 and result.sde == 0:
        parts.append("and every class changed alike.")
    elif moved or (low is not None and low > 0):
        parts.append("and the change is uneven: some classes were hit harder than chance explains.")
    else:
        parts.append("and this test set does not show that some classes were hit harder than others.")
    if moved:
        row = moved[0]
        parts.append(
            f"{len(moved)} of {result.classes} classes moved away from the trend; for '{row['class']}' the share "
            f"missed went from {100 * row['fnr_reference']:.0f} % to {100 * row['fnr']:.0f} %."
        )
    floor = result.measures["cev"].floor
    if floor is not None:
        beside = (
            "more than" if floor.percentile == 100 else "less than" if floor.percentile == 0 else "within the range of"
        )
        parts.append(f"Its CEV is {beside} what equally good dense networks show among each other.")
    return " ".join(parts)


def show(result: Audit, reference: str) -> None:
    """Prints headline, worst classes, measures and the sentence."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    names = ", ".join(trial["file"] for trial in result.trials)
    console.print(Text(f"{names}  against  {reference}", style="bold"))
    console.print(
        Text(f"CEV {number(result.cev)}   SDE {number(result.sde)}   ", style="bold cyan")
        + Text(f"{classes_used(result)}, {result.examples:,} examples, {counted(len(result.trials), 'trial')}")
    )
    console.print(
        Text(
            f"{INTERVAL}: CEV {_range(result.cev_interval)}, SDE {_range(result.sde_interval)}",
            style="dim",
        )
    )
    if len(result.trials) > 1:
        published = result.published
        console.print(
            Text(
                f"rates averaged over trials first: CEV {number(published['cev'])}, SDE {number(published['sde'])}",
                style="dim",
            )
        )
    console.print(Text(sentence(result)))
    table = Table(title="Worst classes", title_justify="left", box=None, pad_edge=False)
    for heading in ("class", "support", "FNR %", "after", "d_FNR", "FPR %", "after", "d_FPR", "p"):
        left = heading == "class"
        table.add_column(heading, justify="left" if left else "right", no_wrap=True, max_width=24 if left else None)
    for row in worst(result):
        shares = [number(100 * row[key]) for key in ("fnr_reference", "fnr", "fpr_reference", "fpr")]
        changes = [f"{row[key]:+.0f}" if row[key] is not None else "–" for key in ("d_fnr", "d_fpr")]
        texts = [str(row["support"]), *shares[:2], changes[0], *shares[2:], changes[1]]
        p = number(row["p_value"], 2) + (" *" if row["significant"] else "")
        table.add_row(Text(row["class"]), *texts, p)
    console.print(table)
    table = Table(title="Measures", title_justify="left", box=None, pad_edge=False)
    floors = result.floor_networks > 0
    for heading in ("measure", "value", INTERVAL, "unit", *(("floor", "percentile") if floors else ())):
        table.add_column(heading, justify="right" if heading in ("value", "percentile") else "left")
    for each in result.measures.values():
        floor = each.floor
        more = (f"{number(floor.low)} to {number(floor.high)}", f"{floor.percentile:.0f}") if floor else ("–", "–")
        table.add_row(each.title, number(each.value), _range(each.interval), each.unit, *(more if floors else ()))
    console.print(table)
    console.print(Text(footnote(result), style="dim"))
    console.print(Text(f"* {result.significance}", style="dim"))
    for note in result.notes:
        console.print(Text(f"note: {note}", style="dim"))
    if result.left_out:
        reasons = sorted(set(result.left_out.values()))
        many = counted(len(result.left_out), "measure") + (" is" if len(result.left_out) == 1 else " are")
        console.print(Text(f"note: {many} missing: {'; '.join(reasons)}", style="dim"))


# The page

STYLE = """
:root{--ink:#1c2430;--soft:#667085;--line:#e4e7ec;--panel:#fff;--back:#f6f7f9;--hue:#2456c9;--hot:#c2410c}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:36px 24px 60px}h1{font-size:26px;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:17px;margin:0 0 12px}p{margin:0 0 10px}.soft{color:var(--soft);font-size:13px;overflow-wrap:anywhere}
.lead{font-size:17px;max-width:860px;margin:18px 0 22px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:14px;margin-bottom:18px}
.card,section{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:16px 18px}
section{margin-bottom:18px;overflow-x:auto}
.card b{display:block;white-space:nowrap;font-size:25px;
font-weight:650;letter-spacing:-.02em;line-height:1.25}
.card span{color:var(--soft);font-size:12.5px;display:block}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th{font-weight:600;text-align:left;color:var(--soft);border-bottom:1px solid var(--line);
padding:6px 10px 6px 0;vertical-align:bottom}
th.sort{cursor:pointer}td{border-bottom:1px solid #f0f2f5;padding:5px 10px 5px 0;vertical-align:top}
td.n,th.n{text-align:right}tr.hit td:first-child{color:var(--hot);font-weight:600}
svg{display:block;width:100%;height:auto;max-width:760px;margin:0 auto}
circle.c{fill:var(--hue);fill-opacity:.62;stroke:#fff;stroke-width:1}
circle.hit{fill:var(--hot)}circle.c:hover{fill-opacity:1;stroke:var(--ink)}
#tip{position:fixed;pointer-events:none;background:#111827;color:#fff;font-size:12.5px;line-height:1.4;
padding:6px 10px;border-radius:6px;white-space:pre;display:none;z-index:9}.key{display:flex;gap:18px;
flex-wrap:wrap;justify-content:center;margin-top:8px}
.key i{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:6px}
"""

SCRIPT = """
const tip=document.getElementById('tip');
document.querySelectorAll('circle.c').forEach(c=>{const text=c.querySelector('title').textContent;
c.addEventListener('mousemove',e=>{tip.textContent=text;tip.style.display='block';
tip.style.left=Math.min(e.clientX+14,innerWidth-tip.offsetWidth-8)+'px';tip.style.top=(e.clientY+14)+'px'});
c.addEventListener('mouseleave',()=>tip.style.display='none')});
document.querySelectorAll('th.sort').forEach(th=>th.addEventListener('click',()=>{
const body=th.closest('table').tBodies[0],i=th.cellIndex,up=th.dataset.up!=='1';th.dataset.up=up?'1':'0';
const key=r=>{const v=r.cells[i].dataset.v;return v===undefined?r.cells[i].textContent:v===''?-Infinity:+v};
[...body.rows].sort((a,b)=>{const x=key(a),y=key(b);return (x<y?-1:x>y?1:0)*(up?1:-1)}).forEach(r=>body.append(r))}));
"""


def page(result: Audit, reference: str) -> str:
    """The audit as one HTML page that loads nothing from elsewhere."""
    candidates = ", ".join(trial["file"] for trial in result.trials)
    cards = [
        ("CEV", number(result.cev), f"squared percent · without sampling noise {_range(result.cev_interval)}"),
        ("SDE", number(result.sde), f"percent · without sampling noise {_range(result.sde_interval)}"),
        (
            "Classes used",
            f"{result.classes_used} of {result.classes}",
            f"{classes_used(result) + ' · ' if len(result.trials) > 1 else ''}{result.examples:,} examples · "
            f"{counted(len(result.trials), 'trial')}",
        ),
    ]
    if "accuracy" in result.measures and "accuracy_change" in result.measures:
        change = result.measures["accuracy_change"]
        before = result.measures["accuracy"].value - change.value
        text = f"{100 * before:.1f} → {100 * result.measures['accuracy'].value:.1f}\u00a0%"
        ends = change.interval
        spread = f"change {100 * ends.low:+.1f} to {100 * ends.high:+.1f} points" if ends else ""
        cards.insert(0, ("Accuracy", text, spread))
    blocks = "".join(
        f'<div class="card"><span>{html.escape(name)}</span><b>{html.escape(value)}</b>'
        f"<span>{html.escape(more)}</span></div>"
        for name, value, more in cards
    )
    notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in result.notes)
    missing = (
        f" Not measured: {', '.join(result.left_out)} ({'; '.join(sorted(set(result.left_out.values())))})."
        if result.left_out
        else ""
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Audit of {html.escape(candidates)}</title><style>{STYLE}</style></head><body><main>
<h1>What compression did to each class</h1>
<p class="soft">{html.escape(candidates)} against {html.escape(reference)}</p>
<p class="lead">{html.escape(sentence(result))}</p>
<div class="cards">{blocks}</div>
<section><h2>Relative change of error rates, one point a class</h2>{scatter(result)}</section>
<section><h2>Measures</h2>{_measure_table(result)}
<p class="soft">{footnote(result)}
{html.escape(missing)}</p></section>
{_group_section(result)}
<section><h2>Classes</h2>{_class_table(result)}
<p class="soft">Marked: recall changed by more or less than accuracy ({html.escape(result.significance)}).
Click a heading to sort.</p></section>
{notes}</main><div id="tip"></div><script>{SCRIPT}</script></body></html>
"""


def scatter(result: Audit) -> str:
    """Inline SVG of d_FNR against d_FPR with centroid, two-sigma ellipse and the line of equal change."""
    rows = [row for row in result.per_class if row["d_fpr"] is not None]
    if not rows:
        return '<p class="soft">No class has a relative change.</p>'
    points = np.array([[row["d_fpr"], row["d_fnr"]] for row in rows])
    low, high = points.min(0), points.max(0)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    span = max(float((high - low).max()), 1.0) * 1.12
    middle = (low + high) / 2
    low, high = (
        middle - span / 2,
        middle + span / 2,
    )  # one scale on both axes, so that the ellipse and the line are true
    left, top, side = 70, 16, 560

    def place(values: np.ndarray) -> tuple[float, float]:
        return left + side * (values[0] - low[0]) / span, top + side * (high[1] - values[1]) / span

    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 7)
    parts = [
        f'<svg viewBox="0 0 {left + side + 20} {top + side + 56}" role="img" '
        'aria-label="change of error rates by class">'
    ]
    parts.append(f'<clipPath id="box"><rect x="{left}" y="{top}" width="{side}" height="{side}"/></clipPath>')
    for axis in (0, 1):
        for tick in range(math.ceil(low[axis] / step), math.floor(high[axis] / step) + 1):
            x, y = place(np.where(np.arange(2) == axis, tick * step, low))
            stroke = "#98a2b3" if tick == 0 else "#e9ecf1"
            label = f"{tick * step:+,.0f}" if tick else "0"
            if axis == 0:
                parts.append(f'<path d="M{x:.1f} {top}V{top + side}" stroke="{stroke}"/>')
                parts.append(
                    f'<text x="{x:.1f}" y="{top + side + 18}" text-anchor="middle" font-size="12" '
                    f'fill="#667085">{label}</text>'
                )
            else:
                parts.append(f'<path d="M{left} {y:.1f}H{left + side}" stroke="{stroke}"/>')
                parts.append(
                    f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" font-size="12" '
                    f'fill="#667085">{label}</text>'
                )
    ends = [place(np.full(2, value)) for value in (min(low), max(high))]
    parts.append('<g clip-path="url(#box)">')
    (x1, y1), (x2, y2) = ends
    parts.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#667085" stroke-dasharray="6 5"/>')
    centre = points.mean(0)
    x, y = place(centre)
    if len(points) > 2:
        lengths, axes = np.linalg.eigh(np.cov(points.T, ddof=0))
        radii = 2 * np.sqrt(np.maximum(lengths, 0)) * side / span
        angle = -math.degrees(math.atan2(axes[1, 1], axes[0, 1]))
        parts.append(
            f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{radii[1]:.1f}" ry="{radii[0]:.1f}" '
            f'transform="rotate({angle:.2f} {x:.1f} {y:.1f})" '
            'fill="#2456c9" fill-opacity=".06" stroke="#2456c9" stroke-opacity=".5"/>'
        )
    parts.append("</g>")
    size = 6.5 if len(rows) <= 40 else 5
    for row, point in zip(rows, points, strict=True):
        px, py = place(point)
        title = html.escape(
            f"{row['class']}\nFPR {number(row['fpr_reference'])} → {number(row['fpr'])} ({row['d_fpr']:+.0f} %)\n"
            f"FNR {number(row['fnr_reference'])} → {number(row['fnr'])} ({row['d_fnr']:+.0f} %)\n"
            f"{row['support']} examples"
        )
        kind = "c hit" if row["significant"] else "c"
        parts.append(f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="{size}"><title>{title}</title></circle>')
    if len(rows) <= 12:
        for row, point in zip(rows, points, strict=True):
            px, py = place(point)
            flip = px > left + side * 0.85
            parts.append(
                f'<text x="{px - 9 if flip else px + 9:.1f}" y="{py + 4:.1f}" font-size="11.5" fill="#344054" '
                f'text-anchor="{"end" if flip else "start"}">{html.escape(row["class"][:24])}</text>'
            )
    parts.append(
        f'<path d="M{x - 8:.1f} {y:.1f}H{x + 8:.1f}M{x:.1f} {y - 8:.1f}V{y + 8:.1f}" '
        'stroke="#111827" stroke-width="2.5"/>'
    )
    parts.append(
        f'<text x="{left + side / 2}" y="{top + side + 44}" text-anchor="middle" font-size="13.5" fill="#1c2430">'
        "change of false positive rate, percent</text>"
        f'<text transform="translate(18 {top + side / 2}) rotate(-90)" text-anchor="middle" font-size="13.5" '
        'fill="#1c2430">'
        "change of false negative rate, percent</text></svg>"
    )
    parts.append(
        '<p class="key soft"><span><i style="background:#2456c9"></i>class</span>'
        '<span><i style="background:#c2410c"></i>class whose '
        "recall moved away from the trend</span><span>+ centroid</span><span>shaded: two standard deviations</span>"
        "<span>dashed: both rates changed alike</span></p>"
    )
    return "".join(parts)


def _cell(value: float | None, text: str | None = None) -> str:
    exact = "" if value is None else repr(float(value))
    return f'<td class="n" data-v="{exact}">{number(value) if text is None else text}</td>'


def _measure_table(result: Audit) -> str:
    floors = result.floor_networks > 0
    head = ["measure", "value", INTERVAL, "unit", "better"] + (["floor", "excess", "percentile"] if floors else [])
    rows = []
    for each in result.measures.values():
        cells = [f"<td>{html.escape(each.title)}</td>", _cell(each.value), f"<td>{_range(each.interval)}</td>"]
        cells += [f"<td>{html.escape(each.unit)}</td>", f"<td>{html.escape(each.better)}</td>"]
        if floors and each.floor:
            floor = each.floor
            cells += [
                f"<td>{number(floor.low)} to {number(floor.high)}</td>",
                _cell(floor.excess),
                _cell(floor.percentile),
            ]
        elif floors:
            cells += ["<td>–</td>"] * 3
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(
        f"<th{' class=n' if name in ('value', 'excess', 'percentile') else ''}>{name}</th>" for name in head
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _class_table(result: Audit) -> str:
    keys = (
        "support",
        "fnr_reference",
        "fnr",
        "d_fnr",
        "fpr_reference",
        "fpr",
        "d_fpr",
        "excess_accuracy_gap",
        "p_value",
    )
    titles = ("support", "FNR before", "after", "change %", "FPR before", "after", "change %", "excess gap", "p")
    rows = "".join(
        f"<tr{' class=hit' if row['significant'] else ''}><td>{html.escape(row['class'])}</td>"
        + "".join(_cell(row[key]) for key in keys)
        + "</tr>"
        for row in worst(result, len(result.per_class))
    )
    heads = '<th class="sort">class</th>' + "".join(f'<th class="sort n">{title}</th>' for title in titles)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _group_section(result: Audit) -> str:
    if result.groups is None:
        return ""
    keys = ("support", "accuracy", "accuracy_change", "excess_accuracy_gap", "cev", "sde", "p_value")
    rows = "".join(
        f"<tr{' class=hit' if row['significant'] else ''}><td>{html.escape(row['group'])}</td>"
        + "".join(_cell(row.get(key)) for key in keys)
        + "</tr>"
        for row in result.groups["per_group"]
    )
    heads = "<th>group</th>" + "".join(f'<th class="n">{key.replace("_", " ")}</th>' for key in keys)
    return (
        f"<section><h2>Groups</h2><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        '<p class="soft">Marked: accuracy changed otherwise than in the rest '
        f"({html.escape(result.groups['significance'])}).</p></section>"
    )
